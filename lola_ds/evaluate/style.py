"""How every figure looks: one colour, line and name per method, one colour per field.

Figures are built on `matplotlib.figure.Figure` directly, so plotting neither needs a display nor
touches the backend or the settings of the program that imports this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lola_ds.atomic_io import replacing

__all__ = [
    "FIELD_COLOURS",
    "METHODS",
    "Line",
    "add_state_axis",
    "figure",
    "lines",
    "pretty",
]


@dataclass(frozen=True)
class Line:
    """How a method is drawn: told apart by colour, and by marker and dashes in grey print."""

    label: str
    color: str
    linestyle: str
    marker: str

    def style(self, marker: bool = True) -> dict[str, Any]:
        """The keyword arguments of `Axes.plot`."""
        style = {"label": self.label, "color": self.color, "linestyle": self.linestyle}
        return style | {"marker": self.marker} if marker else style


METHODS = {
    "truth": Line("truth", "#000000", "-", ""),
    "persistence": Line("persistence", "#e69f00", "--", "^"),
    "climatology": Line("climatology", "#56b4e9", "-.", "v"),
    "autoencoder": Line("autoencoder's reconstruction", "#cc79a7", ":", "D"),
    "emulator": Line("emulator", "#0072b2", "-", "o"),
    "ensemble": Line("emulator, ensemble mean", "#009e73", "-.", "s"),
}
"""Methods in drawing order, coloured after Okabe and Ito (told apart by colour-blind readers)."""


def lines(methods: Iterable[str]) -> dict[str, Line]:
    """The lines of the methods present, in drawing order; beside an ensemble, the emulator's line
    says that it is one member's."""
    present = set(methods)
    found = {method: line for method, line in METHODS.items() if method in present}
    if "ensemble" in present and "emulator" in present:
        found["emulator"] = replace(found["emulator"], label="emulator, one member")
    return found


FIELD_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#555555")
"""Colours of the fields in channel order, repeated when there are more (after Paul Tol)."""

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.framealpha": 0.9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "savefig.dpi": 200,
}


@contextlib.contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` × `height` inches, written to `path` when the block ends well."""
    with matplotlib.rc_context(_SETTINGS):
        fig = Figure(figsize=(width, height), layout="constrained")
        yield fig
        with replacing(path) as temporary:
            fig.savefig(temporary)


def add_state_axis(ax: Axes, step: float, label: str) -> None:
    """A second abscissa on top that counts states, `step` units of the lower one each."""

    def to_states(time: Any) -> Any:
        return time / step

    def to_time(states: Any) -> Any:
        return states * step

    top = ax.secondary_xaxis("top", functions=(to_states, to_time))
    top.set_xlabel(label)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))


def pretty(field: str) -> str:
    """A field's name for people: `momentum_x` -> "momentum x"."""
    return field.replace("_", " ")
