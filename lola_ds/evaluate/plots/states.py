"""Pictures of states: planes of a field in colour, alone or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from lola_ds.evaluate.plots.style import field_label, save_figure

__all__ = [
    "ColourScale",
    "axis_edges",
    "central_slices",
    "draw_state",
    "error_scale",
    "field_scale",
    "plot_snapshots",
    "plot_trajectory",
    "state_planes",
    "truth_scale",
]

SIDE = 1.9
"""The longer side of a panel of `plot_trajectory`, in inches."""


class ColourScale(NamedTuple):
    """How values are mapped to colours."""

    norm: Normalize
    cmap: str


def state_planes(x: np.ndarray) -> np.ndarray:
    """Returns one plane per state, whose first axis is drawn to the right.

    1-d states become bands. 3-d states are cut in the middle of their last axis.

    Arguments:
        x: The states, with shape (T, *S).

    Returns:
        The planes, with shape (T, rows, columns).
    """
    if x.ndim == 2:
        return np.repeat(x[:, None, :], max(1, x.shape[1] // 8), axis=1)
    while x.ndim > 3:
        x = x[..., x.shape[-1] // 2]
    return x.swapaxes(1, 2)


def central_slices(x: np.ndarray) -> np.ndarray:
    """Returns three planes per 3-d state, perpendicular to x, y and z through its centre.

    Arguments:
        x: The states, with shape (C, X, Y, Z).

    Returns:
        The planes, with shape (C, 3, N, N) and N = max(X, Y, Z), padded with NaN. The first axis
        that is left is drawn to the right.
    """
    side = max(x.shape[1:])
    planes = np.full((len(x), 3, side, side), np.nan, np.float32)
    for axis in range(3):
        plane = np.take(x, x.shape[1 + axis] // 2, axis=1 + axis).swapaxes(1, 2)
        planes[:, axis, : plane.shape[1], : plane.shape[2]] = plane
    return planes


def truth_scale(x: np.ndarray) -> ColourScale:
    """Returns a linear scale over the values (…), without the outermost 0.1 % on each side."""
    return ColourScale(Normalize(*_value_range(x)), "viridis")


def error_scale(x: np.ndarray) -> ColourScale:
    """Returns a scale that is symmetric about zero, for errors (…)."""
    bound = max(abs(value) for value in _value_range(x))
    return ColourScale(Normalize(-bound, bound), "RdBu_r")


def field_scale(x: np.ndarray) -> ColourScale:
    """Returns the scale that suits the values (…) of a field.

    It is symmetric if both signs reach far, the lesser at least a quarter as far as the other. It
    is logarithmic if the values are positive and span more than two decades. Otherwise it is
    linear.
    """
    low, high = _value_range(x)
    if min(-low, high) > max(-low, high) / 4:
        return error_scale(x)
    return ColourScale(LogNorm(low, high), "viridis") if 0 < 100 * low < high else truth_scale(x)


def draw_state(
    ax: Axes,
    plane: np.ndarray,
    scale: ColourScale,
    edges: Sequence[np.ndarray] | None = None,
) -> ScalarMappable:
    """Draws a plane without ticks, its rows upwards.

    Arguments:
        ax: The axes to draw in.
        plane: The values, with shape (rows, columns).
        scale: The colour scale.
        edges: The edges of the columns and of the rows, with shapes (columns + 1) and (rows + 1).
            By default, cells have unit size.
    """
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    x, y = edges or [np.arange(size + 1) for size in reversed(plane.shape)]
    return ax.pcolorfast(x, y, plane, norm=scale.norm, cmap=scale.cmap)


def plot_snapshots(
    rows: Mapping[str, np.ndarray],
    error: np.ndarray,
    titles: Sequence[str],
    field: str,
    path: Path,
) -> None:
    """Draws one field: a row per kind of state, a column per time, the error at the bottom.

    Arguments:
        rows: The planes of each row by its name, with shape (T, h, w), on the colour scale of the
            first row.
        error: The planes of the error, with shape (T, h, w), on a symmetric scale.
        titles: The T titles of the columns.
        field: The name of the field.
        path: The PNG file.
    """
    T, height, width = error.shape
    count, side, gap = len(rows), 1.4, max(1, round(0.04 * width))
    above, below = _mosaic(list(rows.values()), gap), _mosaic([error], gap)
    top, bottom = len(above), -gap - height  # of states and errors, in cells
    with save_figure(path, side * T + 1.5, side * height / width * (count + 1) + 0.6) as fig:
        ax = fig.subplots()
        x = np.arange(above.shape[1] + 1)
        states = draw_state(
            ax, above, truth_scale(next(iter(rows.values()))), (x, np.arange(top + 1))
        )
        errors = draw_state(ax, below, error_scale(error), (x, bottom + np.arange(height + 1)))
        ax.set(xlim=(0, above.shape[1]), ylim=(bottom, top))
        ax.set_xticks([width / 2 + (width + gap) * k for k in range(T)], titles)
        centres = [top - height / 2 - (height + gap) * k for k in range(count + 1)]
        ax.set_yticks(centres, [*rows, "error"], rotation=90, va="center")
        ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False, left=False)
        ax.spines[:].set_visible(False)
        shares = [x / (top - bottom) for x in (top, height)]  # of the height of the axes
        for image, label, place in (
            (states, field_label(field), (1.02, 1 - shares[0], 0.025, shares[0])),
            (errors, "error", (1.02, 0, 0.025, shares[1])),
        ):
            bar = fig.colorbar(image, cax=ax.inset_axes(place), label=label)
            bar.ax.grid(False)


def plot_trajectory(
    x: np.ndarray,
    fields: Sequence[str],
    times: Sequence[str],
    edges: Mapping[str, np.ndarray],
    path: Path,
    title: str = "",
) -> None:
    """Draws a trajectory: a row per field, on one colour scale each, and a column per time.

    1-d states become bands. 3-d states are cut in the middle of their last axis.

    Arguments:
        x: The states, with shape (C, T, *S).
        fields: The names of the C fields.
        times: The T titles of the columns.
        edges: The edges of the cells along each axis by its name. The first is drawn to the right.
        path: The PNG file.
        title: The title of the figure.
    """
    names, sides = list(edges), list(edges.values())
    planes = [state_planes(states) for states in x]
    if len(sides) == 3:
        middle = x.shape[-1] // 2
        title = f"{title}, cut at {names[2]} = {sides[2][middle : middle + 2].mean():.3g}"
    if len(sides) == 1:
        sides.append(np.linspace(0, np.ptp(sides[0]) / 8, planes[0].shape[1] + 1))
    width, height = (float(np.ptp(side)) for side in sides[:2])
    scale = SIDE / max(width, height)
    T, C = x.shape[1], len(fields)
    size = width * scale * T + 2.0, (height * scale + 0.12) * C + 0.7
    with save_figure(path, *size) as fig:
        axes = fig.subplots(C, T, squeeze=False)
        for row, field, states in zip(axes, fields, planes):
            colours = field_scale(states)
            images = [draw_state(ax, x, colours, sides[:2]) for ax, x in zip(row, states)]
            row[0].set_ylabel(field_label(field), rotation="horizontal", ha="right", va="center")
            fig.colorbar(images[0], ax=list(row), pad=0.02, aspect=12)
        for ax, time in zip(axes[0], times):
            ax.set_title(time)
        fig.suptitle(title)


def axis_edges(grid: Mapping[str, Any], size: int) -> np.ndarray:
    """Returns the edges of the cells along an axis, half-way between their centres.

    The outer edges are as far from their centres as the inner ones.

    Arguments:
        grid: The centres as the metadata of a shard holds them: {"start", "step"} if they are
            uniform, {"values"} if not. Anything else counts cells.
        size: The number of cells.

    Returns:
        The edges, with shape (size + 1).
    """
    if "values" in grid:
        centres = np.asarray(grid["values"], dtype=float)
    else:
        centres = grid.get("start", 0.0) + grid.get("step", 1.0) * np.arange(size)
    if size == 1:
        return centres[0] + np.array([-0.5, 0.5]) * grid.get("step", 1.0)
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate(([2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]))


def _value_range(x: np.ndarray) -> tuple[float, float]:
    """The 0.1 % and 99.9 % quantiles of the finite values."""
    finite = x[np.isfinite(x)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.001, 0.999])
    return float(low), float(max(high, low + 1e-12))


def _mosaic(rows: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Rows of planes (T, h, w), the first row on top, `gap` cells apart on one plane."""
    T, height, width = rows[0].shape
    size = (len(rows) * (height + gap) - gap, T * (width + gap) - gap)
    canvas = np.full(size, np.nan, np.float32)
    for r, planes in enumerate(reversed(rows)):
        for t, plane in enumerate(planes):
            y, x = r * (height + gap), t * (width + gap)
            canvas[y : y + height, x : x + width] = plane
    return canvas
