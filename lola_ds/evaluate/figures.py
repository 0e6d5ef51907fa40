"""The figures of an evaluation, each drawn from a table or from the states of one trajectory.

Tables are those of `lola_ds.evaluate.tables`; every function writes one PNG, whole or not at all.
"""

# pandas declares what a selection returns as a union of everything it may be, NumPy and scalars
# included, which pyright cannot narrow:
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from lola_ds.evaluate.style import FIELD_COLOURS, METHODS, add_state_axis, figure, lines, pretty
from lola_ds.evaluate.tables import ensemble_scores, evenly, lead_times, mean_over_fields
from lola_ds.metrics import BANDS, band_edges

__all__ = [
    "TimeAxis",
    "plot_error",
    "plot_error_by_field",
    "plot_ranks",
    "plot_snapshots",
    "plot_spectra",
    "plot_spread_skill",
]


@dataclass(frozen=True)
class TimeAxis:
    """Names of the time axis: below in the data's time unit, above in states (or frames)."""

    below: str = "lead time (time unit of the data)"
    above: str = "lead (states)"


def plot_error(
    table: pd.DataFrame, path: Path, metric: str = "vrmse", axis: TimeAxis = TimeAxis()
) -> None:
    """`metric`, averaged over fields, against time: a line per method, quartiles as a band.

    The line is the mean over trajectories; the band holds the middle half of them.
    """
    scores = mean_over_fields(table, metric)
    with figure(path, 6.4, 3.2) as fig:
        ax = fig.subplots()
        _error_lines(ax, scores, lead_times(table))
        ax.set(xlabel=axis.below, ylabel=f"{metric.upper()}, mean over fields")
        _add_state_axis(ax, table, axis)
        fig.legend(loc="outside right center", title=_count(scores), title_fontsize=8)


def plot_error_by_field(
    table: pd.DataFrame, path: Path, metric: str = "vrmse", axis: TimeAxis = TimeAxis()
) -> None:
    """As `plot_error`, a panel per field on one scale."""
    scores = table[table["metric"] == metric]
    fields = scores["field"].unique()
    columns = min(3, len(fields))
    rows = math.ceil(len(fields) / columns)
    with figure(path, 2.6 * columns, 2.2 * rows + 0.7) as fig:
        axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
        for ax, field in zip(axes.flat, fields):
            _error_lines(ax, scores[scores["field"] == field], lead_times(table))
            ax.set_title(pretty(field))
        for ax in axes.flat[len(fields) :]:
            ax.set_visible(False)
        fig.supxlabel(axis.below, fontsize=9)
        fig.supylabel(metric.upper(), fontsize=9)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def plot_spectra(
    spectra: pd.DataFrame, shape: Sequence[int], path: Path, axis: TimeAxis = TimeAxis()
) -> None:
    """Power spectra: a row per field, a column per lead time, a line per method.

    Arguments:
        spectra: the table of `spectra.csv`, mean over trajectories (and members).
        shape: the grid, which sets the limits of the bands (grey lines) and Nyquist's wave number.
        path: the PNG.
        axis: names of the time axis.
    """
    edges = band_edges(shape)
    nyquist = edges[-1][1]
    drawn = spectra[spectra["wavenumber"].between(1, nyquist)]
    fields, leads = drawn["field"].unique(), sorted(drawn["lead"].unique())
    name = axis.below.split(" (")[0]
    with figure(path, 2.3 * len(leads) + 0.6, 1.6 * len(fields) + 0.9) as fig:
        axes = fig.subplots(len(fields), len(leads), sharex=True, sharey="row", squeeze=False)
        for row, field in zip(axes, fields):
            for ax, lead in zip(row, leads):
                panel = drawn[(drawn["field"] == field) & (drawn["lead"] == lead)]
                _spectrum_lines(ax, panel, [first - 0.5 for first, _ in edges[1:]])
                if field == fields[0]:
                    ax.set_title(f"{name} {panel['time'].iloc[0]:.3g}")
            row[0].set_ylabel(pretty(field))
            row[0].set_ylim(bottom=_spectrum_floor(drawn[drawn["field"] == field]))
        for ax in axes[0]:
            for (first, last), band in zip(edges, BANDS):
                where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
                ax.text(math.sqrt(first * last), 0.98, band, fontsize=7, color="0.45", **where)
        fig.supxlabel("wave number (waves along the longest side)", fontsize=9)
        fig.supylabel("power (field's unit squared)", fontsize=9)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def plot_spread_skill(
    table: pd.DataFrame, members: int, path: Path, axis: TimeAxis = TimeAxis()
) -> None:
    """Spread and skill against lead time, and their corrected ratio by field.

    On the left both are divided by the truth's standard deviation, so that fields can be averaged;
    on the right 1 is a calibrated ensemble, below 1 too sure of itself.
    """
    scores = ensemble_scores(table, members)
    mean = scores.groupby("lead")[["relative_spread", "relative_skill"]].mean()
    times = lead_times(table)
    mean.index = times[mean.index]
    with figure(path, 7.0, 3.2) as fig:
        left, right = fig.subplots(1, 2)
        line = METHODS["ensemble"]
        left.plot(mean["relative_skill"], color="black", marker="o", label="skill (mean's RMSE)")
        left.plot(mean["relative_spread"], color=line.color, ls="--", marker="s", label="spread")
        left.set(xlabel=axis.below, ylabel="relative to the truth's std, mean over fields")
        left.set_ylim(bottom=0)
        left.legend()
        right.axhline(1, color="0.3", lw=1)
        for index, (field, rows) in enumerate(scores.groupby("field", sort=False)):
            color = FIELD_COLOURS[index % len(FIELD_COLOURS)]
            right.plot(
                times[rows["lead"]], rows["spread_skill"], color=color, label=pretty(str(field))
            )
        right.set(xlabel=axis.below, ylabel="corrected spread / skill")
        right.set_ylim(0, max(1.2, 1.05 * scores["spread_skill"].max(skipna=True)))
        right.legend(ncols=2, loc="lower right")
        for ax in (left, right):
            _add_state_axis(ax, table, axis)


def plot_ranks(ranks: pd.DataFrame, path: Path, axis: TimeAxis = TimeAxis()) -> None:
    """Rank histograms: a panel for each of three lead times, a line per field, 1 for flat.

    Arguments:
        ranks: mean rank histograms of an ensemble (see `tables.mean_ranks`).
        path: the PNG.
        axis: names of the time axis.
    """
    every = sorted(ranks["lead"].unique())
    leads = [every[i] for i in evenly(len(every), 3)]
    members = int(ranks["rank"].max())
    name = axis.below.split(" (")[0]
    with figure(path, 2.4 * len(leads) + 0.6, 2.9) as fig:
        axes = fig.subplots(1, len(leads), sharey=True, squeeze=False)[0]
        for ax, lead in zip(axes, leads):
            panel = ranks[ranks["lead"] == lead]
            ax.axhline(1, color="0.3", lw=1)
            for index, (field, rows) in enumerate(panel.groupby("field", sort=False)):
                color = FIELD_COLOURS[index % len(FIELD_COLOURS)]
                height = rows["frequency"] * (members + 1)
                ax.step(rows["rank"], height, where="mid", color=color, label=pretty(str(field)))
            ax.set_title(f"{name} {panel['time'].iloc[0]:.3g}")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("frequency relative to flat")
        fig.supxlabel(f"members below the truth, of {members}", fontsize=9)
        handles = axes[0].get_legend_handles_labels()
        fig.legend(*handles, loc="outside upper center", ncols=min(5, ranks["field"].nunique()))


def plot_snapshots(
    rows: dict[str, np.ndarray],
    error: np.ndarray,
    titles: Sequence[str],
    field: str,
    path: Path,
) -> None:
    """Pictures of one field: a row per kind of state, a column per time, the error at the bottom.

    Arguments:
        rows: name of the row -> states (T, *S), on one colour scale, that of the first row.
        error: the error (T, *S), on a symmetric scale of its own.
        titles: T column titles.
        field: the field's name, for the colour bar.
        path: the PNG.
    """
    pictures, errors = [planes(states) for states in rows.values()], planes(error)
    height, width = errors.shape[1:]
    columns, count, side = len(titles), len(rows), 1.4
    aspect = height / width
    bound = max(abs(x) for x in limits(errors))
    above, below = _mosaic(pictures), _mosaic([errors])
    gap = _gap(width)
    bottom = -gap - height  # of the errors, below the states, in cells
    with figure(path, side * columns + 1.5, side * aspect * (count + 1) + 0.6) as fig:
        ax = fig.subplots()
        image = show(ax, above, *limits(pictures[0]))
        errors_image = show(ax, below, -bound, bound, "RdBu_r")
        image.set_extent((0, above.shape[1], 0, above.shape[0]))
        errors_image.set_extent((0, below.shape[1], bottom, bottom + height))
        top = above.shape[0]
        ax.set(xlim=(0, above.shape[1]), ylim=(bottom, top))
        ax.set_xticks([width / 2 + (width + gap) * k for k in range(columns)], titles)
        centres = [top - height / 2 - (height + gap) * k for k in range(count + 1)]
        ax.set_yticks(centres, [*rows, "error"], rotation=90, va="center")
        ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False, left=False)
        ax.spines[:].set_visible(False)
        share = height / (top - bottom)  # of the errors in the height of the axes
        states = top / (top - bottom)
        bars = [
            fig.colorbar(image, cax=ax.inset_axes((1.02, 1 - states, 0.025, states))),
            fig.colorbar(errors_image, cax=ax.inset_axes((1.02, 0, 0.025, share))),
        ]
        for bar, label in zip(bars, (pretty(field), "error")):
            bar.set_label(label)
            bar.ax.grid(False)


def _gap(width: int) -> int:
    """Cells between the pictures of a mosaic."""
    return max(1, round(0.04 * width))


def _mosaic(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures (T, h, w), the first on top (y points upwards), as one picture."""
    T, height, width = rows[0].shape
    gap = _gap(width)
    size = (len(rows) * (height + gap) - gap, T * (width + gap) - gap)
    canvas = np.full(size, np.nan, np.float32)
    for r, states in enumerate(reversed(rows)):
        for t, state in enumerate(states):
            y, x = r * (height + gap), t * (width + gap)
            canvas[y : y + height, x : x + width] = state
    return canvas


def planes(states: np.ndarray) -> np.ndarray:
    """Pictures of states: (T, *S) -> (T, rows, columns), the first axis drawn to the right.

    1-d states become bands, 3-d ones are cut in the middle of their last axis.
    """
    if states.ndim == 2:
        return np.repeat(states[:, None, :], max(1, states.shape[1] // 8), axis=1)
    while states.ndim > 3:
        states = states[..., states.shape[-1] // 2]
    return states.swapaxes(1, 2)


def cuts(states: np.ndarray) -> np.ndarray:
    """Pictures of 3-d states, cut across the middle of x, y, z: (C, *S) -> (C, 3, rows, columns).

    The first axis left is drawn to the right; NaN fills pictures smaller than the largest.
    """
    sides = sorted(states.shape[1:])
    canvas = np.full((len(states), 3, sides[-1], sides[-1]), np.nan, np.float32)
    for axis in range(3):
        picture = np.take(states, states.shape[1 + axis] // 2, axis=1 + axis).swapaxes(1, 2)
        canvas[:, axis, : picture.shape[1], : picture.shape[2]] = picture
    return canvas


def limits(states: np.ndarray) -> tuple[float, float]:
    """A colour scale that leaves out the outermost 0.1 % of the cells on each side."""
    finite = states[np.isfinite(states)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.001, 0.999])
    return float(low), float(max(high, low + 1e-12))


def show(ax: Axes, state: np.ndarray, low: float, high: float, cmap: str = "viridis") -> AxesImage:
    """Draws one picture without ticks, y upwards."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return ax.imshow(state, origin="lower", vmin=low, vmax=high, cmap=cmap, interpolation="nearest")


def _error_lines(ax: Axes, scores: pd.DataFrame, times: pd.Series) -> None:
    """A line (mean) and a band (quartiles) over trajectories for each method in `scores`.

    The axis is logarithmic where the values span a factor 3 or more.
    """
    for method, line in lines(scores["method"]).items():
        groups = scores[scores["method"] == method].groupby("lead")["value"]
        mean = groups.mean()
        ax.plot(times[mean.index], mean, **line.style())
        if np.isfinite(mean).all():  # no band around a forecast that blew up
            low, high = groups.quantile(0.25), groups.quantile(0.75)
            ax.fill_between(times[mean.index], low, high, color=line.color, alpha=0.18, lw=0)
    values = scores.loc[np.isfinite(scores["value"]) & (scores["value"] > 0), "value"]
    if not len(values) or values.max() < 3 * values.min():
        return  # too little for a logarithmic axis, which would show one tick
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(_plain_number)
    ax.yaxis.set_minor_formatter(_minor_numbers(ax))
    ax.tick_params(axis="y", which="minor", labelsize=7)


def _plain_number(value: float, _: object = None) -> str:
    return f"{value:g}"


def _minor_numbers(ax: Axes) -> Callable[[float, object], str]:
    """Labels the minor ticks of a decade: all, 2 and 5, or none, as the axis spans more of them."""

    def label(value: float, _: object = None) -> str:
        low, high = ax.get_ylim()
        digit = round(value / 10 ** math.floor(math.log10(value)))
        labelled = high / low < 5 or (high / low < 200 and digit in (2, 5))
        return f"{value:.2g}" if labelled else ""

    return label


def _spectrum_lines(ax: Axes, panel: pd.DataFrame, cuts: Sequence[float]) -> None:
    for cut in cuts:
        ax.axvline(cut, color="0.8", lw=0.8, zorder=0)
    for method, line in lines(panel["method"]).items():
        rows = panel[panel["method"] == method]
        ax.plot(rows["wavenumber"], rows["power"], **line.style(marker=False))
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_minor_locator(NullLocator())


def _spectrum_floor(spectra: pd.DataFrame) -> float | None:
    """The lower limit of the power axis: a decade below the truth's least, round-off left out."""
    truth = spectra.loc[spectra["method"] == "truth", "power"]
    visible = truth[truth > 1e-14 * truth.max()]
    return float(visible.min()) / 10 if len(visible) else None


def _add_state_axis(ax: Axes, table: pd.DataFrame, axis: TimeAxis) -> None:
    """The axis of states, when one state takes the same time throughout the table."""
    times = lead_times(table)
    times = times[times.index > 0]
    steps = times / times.index
    if len(steps) and steps.min() > 0 and np.allclose(steps, steps.iloc[0], rtol=1e-5):
        add_state_axis(ax, float(steps.iloc[0]), axis.above)


def _count(scores: pd.DataFrame) -> str:
    count = scores["trajectory"].nunique()
    return f"{count} trajector{'y' if count == 1 else 'ies'}" + (", quartiles" if count > 1 else "")
