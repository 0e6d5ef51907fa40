"""The tables of an evaluation: rows of scores, their averages, a summary and its text.

`metrics.parquet` and `metrics.csv` have one number per row: setting (how the emulator was run, see
`settings.Forecast.name`), method, trajectory, start (first known frame), field, lead (in states),
time (lead time in the data's time unit), metric (see `lola_ds.evaluate.scores`), bin (wave number
of a `power`, rank of a `rank`, else -1), value. Averages are over the rows of one setting.
Methods:

    emulator      one member of the forecast (average over the members)
    ensemble      the mean of the members, and the scores of the members together
    persistence   the last known state, repeated
    climatology   the mean of the training split
    autoencoder   the truth, encoded and decoded, a lower bound of a latent emulator's errors
    truth         the standard deviation of the truth
"""

# pandas declares what a selection returns as a union of everything it may be, NumPy and scalars
# included, which pyright cannot narrow:
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lola_ds.atomic_io import replacing, write_atomic
from lola_ds.evaluate.plots.style import METHODS, method_styles
from lola_ds.evaluate.scores import Scores, join_leads
from lola_ds.metrics import BANDS, correlation_time, finite_ensemble_factor, nominal_coverage

__all__ = [
    "COLUMNS",
    "Unit",
    "correlation_times",
    "ensemble_scores",
    "format_forecast",
    "format_reconstruction",
    "lead_times",
    "mean_over_fields",
    "mean_ranks",
    "mean_spectra",
    "score_rows",
    "summarize",
    "unit_rows",
    "write_csv",
    "write_json",
]

COLUMNS = (
    "setting",
    "method",
    "trajectory",
    "start",
    "field",
    "lead",
    "time",
    "metric",
    "bin",
    "value",
)

# The lead time at which the spatial correlation falls below this is a summary's correlation time.
CORRELATED = 0.8

SPECTRA = 3  # lead times with spectra


class Unit(NamedTuple):
    """One forecast: a trajectory of the dataset from its frame `start`, with one setting."""

    setting: str
    trajectory: int
    start: int


def unit_rows(
    pieces: Sequence[Mapping[str, Scores]],
    unit: Unit,
    fields: Sequence[str],
    leads: Sequence[int],
    times: np.ndarray,
) -> pd.DataFrame:
    """Returns the rows of all methods on one unit.

    Arguments:
        pieces: The scores of each method, for consecutive lead times.
        unit: The unit.
        fields: The names of the C fields.
        leads: The T leads.
        times: The T lead times, with shape (T).
    """
    at = even_indices(len(leads), SPECTRA)
    parts = []
    for method in pieces[0]:
        scores = join_leads([piece[method] for piece in pieces])
        parts.append(score_rows(scores, unit, method, fields, leads, times.tolist(), at))
    return pd.concat(parts, ignore_index=True)


def score_rows(
    scores: Scores,
    unit: Unit,
    method: str,
    fields: Sequence[str],
    leads: Sequence[int],
    times: Sequence[float],
    spectra_at: Sequence[int] = (),
) -> pd.DataFrame:
    """Returns the rows of one method: metrics × fields × leads (× bins).

    Arguments:
        scores: The scores.
        unit: The unit.
        method: The method.
        fields: The names of the C fields.
        leads: The T leads.
        times: The T lead times.
        spectra_at: The positions in `leads` whose power spectra are kept.
    """
    every, joint = range(len(leads)), ["all"]
    blocks = [(name, fields, every, x[..., None]) for name, x in scores.values.items()]
    blocks += [(name, joint, every, x[None, :, None]) for name, x in scores.joint.items()]
    for name, x in scores.binned.items():
        kept = list(spectra_at) if name == "power" else list(every)
        blocks.append((name, fields, kept, x[:, kept]))
    parts = []
    for metric, names, at, values in blocks:
        field, lead, index = (i.ravel() for i in np.indices(values.shape))
        chosen = np.asarray(at, np.int64)[lead]
        columns = {
            **unit._asdict(),
            "method": method,
            "field": np.asarray(names)[field],
            "lead": np.asarray(leads)[chosen],
            "time": np.asarray(times)[chosen],
            "metric": metric,
            "bin": index if metric in scores.binned else -1,
            "value": values.numpy().ravel(),
        }
        parts.append(pd.DataFrame(columns, columns=list(COLUMNS)))
    return pd.concat(parts, ignore_index=True)


def mean_over_fields(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns the averages of a metric over fields: method, trajectory, start, lead, value."""
    rows = table[table["metric"] == metric]
    keys = ["method", "trajectory", "start", "lead"]
    return rows.groupby(keys, sort=False, as_index=False)["value"].mean()


def mean_spectra(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the power spectra averaged over trajectories, as in `spectra.csv`."""
    return _binned(table, "power").rename(columns={"bin": "wavenumber", "value": "power"})


def mean_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rank histograms averaged over trajectories."""
    return _binned(table, "rank").rename(columns={"bin": "rank", "value": "frequency"})


def _binned(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    keys = ["method", "field", "lead", "bin"]
    rows = table[table["metric"] == metric]
    return rows.groupby(keys, sort=False, as_index=False)[["time", "value"]].mean()


def correlation_times(table: pd.DataFrame, threshold: float = CORRELATED) -> dict[str, float]:
    """Returns how long the forecasts of each method stay correlated with the truth, on average.

    Times are in the data's unit. A forecast that never falls below the threshold counts with its
    last lead time, so that the mean is a lower bound.
    """
    rows = table[table["metric"] == "pearson"]
    found = {}
    for method, group in rows.groupby("method", sort=False):
        keys = ["trajectory", "start", "field"]
        series = group.pivot_table(index=keys, columns="lead", values="value")
        times = torch.tensor(lead_times(group)[series.columns].to_numpy())
        rho = torch.tensor(series.to_numpy())
        found[str(method)] = float(correlation_time(rho, times, threshold).mean())
    return found


def lead_times(table: pd.DataFrame) -> pd.Series:
    """Returns the time of each lead, averaged over trajectories, which may differ by round-off."""
    return table.groupby("lead")["time"].mean()


def ensemble_scores(table: pd.DataFrame, members: int) -> pd.DataFrame:
    """Returns spread and skill by field and lead, over all trajectories.

    Squares are averaged over trajectories before taking roots. Then
    spread_skill = √((M + 1)/M) · spread / skill. `relative_spread` and `relative_skill` are divided
    by the standard deviation of the truth, which is averaged likewise.

    Arguments:
        table: The rows of one setting.
        members: The number of members M.
    """

    def rms(method: str, metric: str) -> pd.Series:
        rows = table[(table["method"] == method) & (table["metric"] == metric)]
        squares = rows.assign(value=rows["value"] ** 2)
        return squares.groupby(["field", "lead"], sort=False)["value"].mean() ** 0.5

    spread, skill, std = rms("ensemble", "spread"), rms("ensemble", "skill"), rms("truth", "std")
    return pd.DataFrame(
        {
            "spread": spread,
            "skill": skill,
            "spread_skill": finite_ensemble_factor(members) * spread / skill,
            "relative_spread": spread / std,
            "relative_skill": skill / std,
        }
    ).reset_index()


def summarize(table: pd.DataFrame, members: int) -> dict[str, Any]:
    """Returns the headline numbers of a table for JSON, where NaN and infinity are null.

    Means are over trajectories and fields. `ratio_to_persistence` is the ratio of two such means at
    each lead, and its `mean` the average over leads.
    """
    vrmse = mean_over_fields(table, "vrmse")
    by_lead = vrmse.groupby(["method", "lead"])["value"].mean().unstack("method")
    methods = [method for method in METHODS if method in by_lead]
    times = lead_times(table)
    rows = table[table["metric"] == "vrmse"]
    by_field = rows.groupby(["method", "field"], sort=False)["value"].mean()
    summary: dict[str, Any] = {
        "trajectories": int(table["trajectory"].nunique()),
        "fields": list(rows["field"].unique()),
        "members": members,
        "leads": [int(lead) for lead in by_lead.index],
        "times": times[by_lead.index].tolist(),
        "vrmse": {
            method: {
                "by_lead": by_lead[method].tolist(),
                "by_field": {str(k): float(x) for k, x in by_field[method].items()},
                "mean": float(by_lead[method].mean()),
            }
            for method in methods
        },
        "spectrum_error": {method: _bands(table, method, "spectrum") for method in methods},
        "correlation": {method: _bands(table, method, "correlation") for method in methods},
    }
    for name in ("linf", "total", "wasserstein", "sliced_wasserstein"):
        means = table[table["metric"] == name].groupby("method", sort=False)["value"].mean()
        summary[name] = {str(method): float(x) for method, x in means.items()}
    if "persistence" in methods:
        summary["correlation_time"] = correlation_times(table)
        summary["ratio_to_persistence"] = {}
        for method in methods:
            ratio = by_lead[method] / by_lead["persistence"]
            summary["ratio_to_persistence"][method] = {
                "by_lead": ratio.tolist(),
                "mean": float(ratio.mean()),
                "worst": float(ratio.max(skipna=False)),
            }
    if "ensemble" in methods:
        summary["ensemble"] = _summarize_ensemble(table, members, by_lead)
    return _finite(summary)


def _summarize_ensemble(
    table: pd.DataFrame, members: int, by_lead: pd.DataFrame
) -> dict[str, list[float] | float]:
    scores = ensemble_scores(table, members)
    names = ["relative_spread", "relative_skill", "spread_skill"]
    means = scores.groupby("lead")[names].mean()
    means_of = {
        name: table[table["metric"] == name].groupby("lead")["value"].mean().tolist()
        for name in ("crps", "energy", "coverage")
    }
    return {
        **{name: means[name].tolist() for name in names},
        **means_of,
        "nominal_coverage": nominal_coverage(members)[0],
        "mean_over_member": float((by_lead["ensemble"] / by_lead["emulator"]).mean()),
    }


def _bands(table: pd.DataFrame, method: str, name: str) -> dict[str, float]:
    rows = table[table["method"] == method]
    return {b: float(rows.loc[rows["metric"] == f"{name}_{b}", "value"].mean()) for b in BANDS}


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def format_forecast(summary: dict[str, Any], columns: int = 8) -> str:
    """Returns the summary of a forecast as text: a line per method, at most `columns` leads."""
    chosen = even_indices(len(summary["leads"]), columns)
    labels = {method: style.label for method, style in method_styles(summary["vrmse"]).items()}
    rows = {labels[method]: scores for method, scores in summary["vrmse"].items()}
    for method, ratio in summary["ratio_to_persistence"].items():
        if method in ("emulator", "ensemble"):
            rows[f"{labels[method]} / persistence"] = ratio
    if "ensemble" in summary:
        ratios = summary["ensemble"]["spread_skill"]
        rows["spread / skill, corrected"] = {"by_lead": ratios, "mean": None}
    heads = [(str(summary["leads"][i]), f"{summary['times'][i]:.3g}") for i in chosen]
    table = pd.DataFrame(
        [[*(row["by_lead"][i] for i in chosen), row["mean"]] for row in rows.values()],
        index=list(rows),
        columns=pd.MultiIndex.from_tuples(
            [*heads, ("mean", "")], names=["lead (states)", "lead time"]
        ),
    )
    title = f"VRMSE, mean over {len(summary['fields'])} fields and {_trajectories(summary)}"
    return f"{title}\n{_to_text(table)}"


def format_reconstruction(summary: dict[str, Any], table: pd.DataFrame) -> str:
    """Returns the summary of an autoencoder as text: a line per field, a column per metric."""
    rows = table[table["method"] == "autoencoder"]
    kinds = ("spectrum", "correlation")
    banded = {f"{name}_{band}": f"{name[:2]}.{band}" for name in kinds for band in BANDS}
    names = {"vrmse": "VRMSE", "nrmse": "NRMSE", **banded}
    means = rows.groupby(["field", "metric"])["value"].mean().unstack("metric")
    means = means.loc[summary["fields"], list(names)].rename(columns=names)
    means.loc["mean over fields"] = means.mean()
    title = f"Reconstruction of {len(summary['leads'])} frames of each of {_trajectories(summary)}"
    note = "sp. relative error of the power spectrum, co. correlation, by band of wave number"
    return f"{title}\n{_to_text(means.rename_axis(index=None, columns=None))}\n{note}"


def _to_text(table: pd.DataFrame) -> str:
    """The numbers of a table with three decimals, `-` if they are not finite."""
    finite = table.astype(float).replace([np.inf, -np.inf], np.nan)
    return finite.to_string(float_format="{:.3f}".format, na_rep="-")


def _trajectories(summary: dict[str, Any]) -> str:
    count = summary["trajectories"]
    return f"{count} trajector{'y' if count == 1 else 'ies'}"


def even_indices(count: int, most: int) -> list[int]:
    """Returns at most `most` indices of 0..count-1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table atomically, numbers with all their digits."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def write_json(tree: dict[str, Any], path: Path) -> None:
    """Writes JSON atomically."""
    write_atomic(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")
