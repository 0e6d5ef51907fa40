"""Curves and histograms of an evaluation, one PNG from one table of `lola_ds.evaluate.tables`."""

# pandas declares what a selection returns as a union of everything it may be, NumPy and scalars
# included, which pyright cannot narrow:
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from lola_ds.evaluate.plots.style import (
    FIELD_COLOURS,
    METHODS,
    field_label,
    method_styles,
    save_figure,
)
from lola_ds.evaluate.tables import ensemble_scores, even_indices, lead_times, mean_over_fields
from lola_ds.metrics import BANDS, band_edges

__all__ = [
    "TimeAxis",
    "plot_error",
    "plot_error_by_field",
    "plot_ranks",
    "plot_spectra",
    "plot_spread_skill",
]


@dataclass(frozen=True)
class TimeAxis:
    """The labels of the two time axes.

    Arguments:
        bottom: The label of the bottom axis, in the time unit of the data.
        top: The label of the top axis, in states or frames.
    """

    bottom: str = "lead time (time unit of the data)"
    top: str = "lead (states)"

    @property
    def name(self) -> str:
        """The label of the bottom axis without its unit."""
        return self.bottom.split(" (")[0]


def plot_error(
    table: pd.DataFrame, path: Path, metric: str = "vrmse", axis: TimeAxis = TimeAxis()
) -> None:
    """Draws a metric, averaged over fields, against time.

    Each method has a line, the mean over trajectories, and a band between their quartiles.

    Arguments:
        table: The rows of `metrics.parquet` with one setting.
        path: The PNG file.
        metric: The name of the metric.
        axis: The labels of the time axes.
    """
    scores = mean_over_fields(table, metric)
    with save_figure(path, 6.4, 3.2) as fig:
        ax = fig.subplots()
        _error_lines(ax, scores, lead_times(table))
        ax.set(xlabel=axis.bottom, ylabel=f"{metric.upper()}, mean over fields")
        _add_state_axis(ax, table, axis)
        fig.legend(loc="outside right center", title=_count(scores), title_fontsize=8)


def plot_error_by_field(
    table: pd.DataFrame, path: Path, metric: str = "vrmse", axis: TimeAxis = TimeAxis()
) -> None:
    """Draws the same as `plot_error` in a panel per field."""
    scores = table[table["metric"] == metric]
    fields = scores["field"].unique()
    columns = min(3, len(fields))
    rows = math.ceil(len(fields) / columns)
    with save_figure(path, 2.6 * columns, 2.2 * rows + 0.7) as fig:
        axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
        for ax, field in zip(axes.flat, fields):
            _error_lines(ax, scores[scores["field"] == field], lead_times(table))
            ax.set_title(field_label(field))
        for ax in axes.flat[len(fields) :]:
            ax.set_visible(False)
        fig.supxlabel(axis.bottom)
        fig.supylabel(metric.upper())
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def plot_spectra(
    spectra: pd.DataFrame, shape: Sequence[int], path: Path, axis: TimeAxis = TimeAxis()
) -> None:
    """Draws power spectra: a row per field, a column per lead time, a line per method.

    Grey lines separate the bands of wave numbers.

    Arguments:
        spectra: The table of `spectra.csv`.
        shape: The shape *S of the grid, for the bands and the Nyquist wave number.
        path: The PNG file.
        axis: The labels of the time axes.
    """
    edges = band_edges(shape)
    nyquist = edges[-1][1]
    drawn = spectra[spectra["wavenumber"].between(1, nyquist)]
    fields, leads = drawn["field"].unique(), sorted(drawn["lead"].unique())
    with save_figure(path, 2.3 * len(leads) + 0.6, 1.6 * len(fields) + 0.9) as fig:
        axes = fig.subplots(len(fields), len(leads), sharex=True, sharey="row", squeeze=False)
        for row, field in zip(axes, fields):
            for ax, lead in zip(row, leads):
                panel = drawn[(drawn["field"] == field) & (drawn["lead"] == lead)]
                _spectrum_lines(ax, panel, [first - 0.5 for first, _ in edges[1:]])
                if field == fields[0]:
                    ax.set_title(f"{axis.name} {panel['time'].iloc[0]:.3g}")
            row[0].set_ylabel(field_label(field))
            row[0].set_ylim(bottom=_spectrum_floor(drawn[drawn["field"] == field]))
        for ax in axes[0]:
            for (first, last), band in zip(edges, BANDS):
                where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
                ax.text(math.sqrt(first * last), 0.98, band, fontsize=7, color="0.45", **where)
        fig.supxlabel("wave number (waves along the longest side)")
        fig.supylabel("power (field's unit squared)")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def plot_spread_skill(
    table: pd.DataFrame, members: int, path: Path, axis: TimeAxis = TimeAxis()
) -> None:
    """Draws spread and skill against lead time, and their corrected ratio by field.

    On the left, both are divided by the standard deviation of the truth and averaged over fields.
    On the right, the ratio of a calibrated ensemble is 1, and that of an overconfident one less.

    Arguments:
        table: The rows of `metrics.parquet` with one setting.
        members: The number of members M.
        path: The PNG file.
        axis: The labels of the time axes.
    """
    scores = ensemble_scores(table, members)
    mean = scores.groupby("lead")[["relative_spread", "relative_skill"]].mean()
    times = lead_times(table)
    mean.index = times[mean.index]
    with save_figure(path, 7.0, 3.2) as fig:
        left, right = fig.subplots(1, 2)
        colour = METHODS["ensemble"].color
        left.plot(mean["relative_skill"], color="black", marker="o", label="skill (mean's RMSE)")
        left.plot(mean["relative_spread"], color=colour, ls="--", marker="s", label="spread")
        left.set(xlabel=axis.bottom, ylabel="relative to the truth's std, mean over fields")
        left.set_ylim(bottom=0)
        left.legend()
        right.axhline(1, color="0.3", lw=1)
        for rows, style in _by_field(scores):
            right.plot(times[rows["lead"]], rows["spread_skill"], **style)
        right.set(xlabel=axis.bottom, ylabel="corrected spread / skill")
        right.set_ylim(0, max(1.2, 1.05 * scores["spread_skill"].max(skipna=True)))
        right.legend(ncols=2, loc="lower right")
        for ax in (left, right):
            _add_state_axis(ax, table, axis)


def plot_ranks(ranks: pd.DataFrame, path: Path, axis: TimeAxis = TimeAxis()) -> None:
    """Draws rank histograms: a panel for each of three lead times, a line per field.

    Frequencies are relative to those of a flat histogram.

    Arguments:
        ranks: The mean rank histograms of an ensemble (see `tables.mean_ranks`).
        path: The PNG file.
        axis: The labels of the time axes.
    """
    leads = sorted(ranks["lead"].unique())
    leads = [leads[i] for i in even_indices(len(leads), 3)]
    members = int(ranks["rank"].max())
    with save_figure(path, 2.4 * len(leads) + 0.6, 2.9) as fig:
        axes = fig.subplots(1, len(leads), sharey=True, squeeze=False)[0]
        for ax, lead in zip(axes, leads):
            panel = ranks[ranks["lead"] == lead]
            ax.axhline(1, color="0.3", lw=1)
            for rows, style in _by_field(panel):
                ax.step(rows["rank"], rows["frequency"] * (members + 1), where="mid", **style)
            ax.set_title(f"{axis.name} {panel['time'].iloc[0]:.3g}")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("frequency relative to flat")
        fig.supxlabel(f"members below the truth, of {members}")
        handles = axes[0].get_legend_handles_labels()
        fig.legend(*handles, loc="outside upper center", ncols=min(5, ranks["field"].nunique()))


def _by_field(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, str]]]:
    """The rows of each field, and the style of its line."""
    groups = table.groupby("field", sort=False)
    for (field, rows), colour in zip(groups, itertools.cycle(FIELD_COLOURS)):
        yield rows, {"color": colour, "label": field_label(str(field))}


def _error_lines(ax: Axes, scores: pd.DataFrame, times: pd.Series) -> None:
    """Draws the mean and the quartiles of each method; in log scale from a factor of 3 on."""
    for method, style in method_styles(scores["method"]).items():
        groups = scores[scores["method"] == method].groupby("lead")["value"]
        mean = groups.mean()
        ax.plot(times[mean.index], mean, **style.line())
        if np.isfinite(mean).all():  # no band around a forecast that diverged
            low, high = groups.quantile(0.25), groups.quantile(0.75)
            ax.fill_between(times[mean.index], low, high, color=style.color, alpha=0.18, lw=0)
    values = scores.loc[np.isfinite(scores["value"]) & (scores["value"] > 0), "value"]
    if not len(values) or values.max() < 3 * values.min():
        return  # a logarithmic axis would have a single tick
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(_minor_numbers(ax))
    ax.tick_params(axis="y", which="minor", labelsize=7)


def _minor_numbers(ax: Axes) -> Callable[[float, object], str]:
    """Labels all minor ticks, those at 2 and 5, or none, depending on how much the axis spans."""

    def label(value: float, _: object = None) -> str:
        low, high = ax.get_ylim()
        digit = round(value / 10 ** math.floor(math.log10(value)))
        labelled = high / low < 5 or (high / low < 200 and digit in (2, 5))
        return f"{value:.2g}" if labelled else ""

    return label


def _spectrum_lines(ax: Axes, panel: pd.DataFrame, cuts: Sequence[float]) -> None:
    for cut in cuts:
        ax.axvline(cut, color="0.8", lw=0.8, zorder=0)
    for method, style in method_styles(panel["method"]).items():
        rows = panel[panel["method"] == method]
        ax.plot(rows["wavenumber"], rows["power"], **style.line(marker=False))
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_minor_locator(NullLocator())


def _spectrum_floor(spectra: pd.DataFrame) -> float | None:
    """A decade below the least power of the truth, round-off excluded."""
    truth = spectra.loc[spectra["method"] == "truth", "power"]
    visible = truth[truth > 1e-14 * truth.max()]
    return float(visible.min()) / 10 if len(visible) else None


def _add_state_axis(ax: Axes, table: pd.DataFrame, axis: TimeAxis) -> None:
    """Adds the top axis if states are equally far apart in time throughout the table."""
    times = lead_times(table)
    times = times[times.index > 0]
    steps = times / times.index
    if len(steps) and steps.min() > 0 and np.allclose(steps, steps.iloc[0], rtol=1e-5):
        step = float(steps.iloc[0])
        top = ax.secondary_xaxis("top", functions=(lambda time: time / step, lambda n: n * step))
        top.set_xlabel(axis.top)
        top.xaxis.set_major_locator(MaxNLocator(integer=True))


def _count(scores: pd.DataFrame) -> str:
    count = scores["trajectory"].nunique()
    return f"{count} trajector{'y' if count == 1 else 'ies'}" + (", quartiles" if count > 1 else "")
