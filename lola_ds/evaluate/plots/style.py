"""The style of all figures: colours, lines and names of methods and fields.

Figures are built on `matplotlib.figure.Figure` directly, so plotting needs no display and leaves
the backend and the settings of the importing program alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lola_ds.atomic_io import replacing

__all__ = [
    "FIELD_COLOURS",
    "METHODS",
    "MethodStyle",
    "field_label",
    "method_styles",
    "save_figure",
    "styled_figure",
]


@dataclass(frozen=True)
class MethodStyle:
    """The look of a method, which dashes and markers identify in grey print."""

    label: str
    color: str
    linestyle: str
    marker: str

    def line(self, marker: bool = True) -> dict[str, Any]:
        """Returns the keyword arguments of `Axes.plot`."""
        style = {"label": self.label, "color": self.color, "linestyle": self.linestyle}
        return style | {"marker": self.marker} if marker else style


METHODS = {
    "truth": MethodStyle("truth", "#000000", "-", ""),
    "persistence": MethodStyle("persistence", "#e69f00", "--", "^"),
    "climatology": MethodStyle("climatology", "#56b4e9", "-.", "v"),
    "autoencoder": MethodStyle("autoencoder's reconstruction", "#cc79a7", ":", "D"),
    "emulator": MethodStyle("emulator", "#0072b2", "-", "o"),
    "ensemble": MethodStyle("emulator, ensemble mean", "#009e73", "-.", "s"),
}
"""The methods in drawing order, in the colour-blind safe palette of Okabe and Ito."""

FIELD_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#555555")
"""The colours of the fields in channel order, repeated when there are more (Paul Tol's palette)."""

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.framealpha": 0.9,
    "figure.titlesize": 9,
    "figure.labelsize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "savefig.dpi": 200,
}


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """Returns the styles of some methods, in drawing order.

    Beside an ensemble, the emulator's label says that it is one member.
    """
    present = set(methods)
    styles = {method: style for method, style in METHODS.items() if method in present}
    if "ensemble" in present and "emulator" in present:
        styles["emulator"] = replace(styles["emulator"], label="emulator, one member")
    return styles


def field_label(field: str) -> str:
    """Returns the name of a field as figures show it: `momentum_x` -> "momentum x"."""
    return field.replace("_", " ")


@contextlib.contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """Makes a figure of `width` × `height` inches and applies the style inside the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def save_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Makes a styled figure and writes it to `path`, atomically, when the block succeeds."""
    with styled_figure(width, height) as fig:
        yield fig
        with replacing(path) as temporary:
            fig.savefig(temporary)
