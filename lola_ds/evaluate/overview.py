"""A picture of a trajectory: its fields at a few times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from lola_ds.evaluate.style import figure, pretty

__all__ = ["axis_edges", "plot_trajectory"]

SIDE = 1.9
"""The longer side of a panel, in inches."""


def plot_trajectory(
    x: np.ndarray,
    fields: Sequence[str],
    times: Sequence[str],
    edges: Mapping[str, np.ndarray],
    path: Path,
    title: str = "",
) -> None:
    """Draws a row per field and a column per time, each row on one colour scale.

    Fields of both signs have a symmetric scale, positive ones that span more than two decades a
    logarithmic one. The outermost 0.1 % of the values do not count, nor does a sign that reaches
    less than a quarter as far as the other. 1-d states become bands, 3-d ones are cut in the middle
    of their last axis.

    Arguments:
        x: states (C, T, *S).
        fields: C names.
        times: T titles.
        edges: the edges of the cells along each axis, by name; the first is drawn to the right.
        path: the PNG, written whole or not at all.
        title: what stands above.
    """
    names, sides = list(edges), list(edges.values())
    if len(sides) == 3:
        middle = x.shape[-1] // 2
        place = sides[2][middle : middle + 2].mean()
        title = f"{title}, cut at {names[2]} = {place:.3g}"
        x = x[..., middle]
    if len(sides) == 1:
        length = float(np.ptp(sides[0]))
        x, sides = x[..., None], [sides[0], np.array([0, length / 8])]
    width, height = (float(np.ptp(side)) for side in sides[:2])
    scale = SIDE / max(width, height)
    columns, rows = x.shape[1], len(fields)
    size = width * scale * columns + 2.0, (height * scale + 0.12) * rows + 0.7
    with figure(path, *size) as fig:
        axes = fig.subplots(rows, columns, squeeze=False)
        for row, field, states in zip(axes, fields, x):
            norm, cmap = _colours(states)
            for ax, state in zip(row, states):
                _draw(ax, sides, state, norm, cmap)
            row[0].set_ylabel(pretty(field), rotation="horizontal", ha="right", va="center")
            fig.colorbar(ScalarMappable(norm, cmap), ax=list(row), pad=0.02, aspect=12)
        for ax, time in zip(axes[0], times):
            ax.set_title(time)
        fig.suptitle(title, fontsize=9)


def axis_edges(grid: Mapping[str, Any], size: int) -> np.ndarray:
    """The edges of `size` cells, from the grid of their centres as a shard's metadata holds it.

    Edges lie half-way between centres, the outer ones as far from theirs as the inner ones are.

    Arguments:
        grid: {"start", "step"} where it is uniform, else {"values"}; anything else counts cells.
        size: the number of cells.
    """
    if "values" in grid:
        centres = np.asarray(grid["values"], dtype=float)
    else:
        centres = grid.get("start", 0.0) + grid.get("step", 1.0) * np.arange(size)
    if size == 1:
        return centres[0] + np.array([-0.5, 0.5]) * grid.get("step", 1.0)
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate(([2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]))


def _draw(
    ax: Axes, sides: Sequence[np.ndarray], state: np.ndarray, norm: Normalize, cmap: str
) -> None:
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    ax.pcolormesh(sides[0], sides[1], state.T, norm=norm, cmap=cmap, rasterized=True)


def _colours(states: np.ndarray) -> tuple[Normalize, str]:
    """The colour scale and map of a field's states."""
    finite = states[np.isfinite(states)]
    if not finite.size:
        return Normalize(0, 1), "viridis"
    low, high = (float(x) for x in np.quantile(finite, [0.001, 0.999]))
    bound = max(-low, high)
    if min(-low, high) > bound / 4:
        return Normalize(-bound, bound), "RdBu_r"
    if low > 0 and high > 100 * low:
        return LogNorm(low, high), "viridis"
    return Normalize(low, max(high, low + 1e-12)), "viridis"
