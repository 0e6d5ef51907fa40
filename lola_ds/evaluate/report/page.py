"""The sections of a page, each made from the runs by one function."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lola_ds.atomic_io import write_atomic
from lola_ds.evaluate.plots.charts import Curve
from lola_ds.evaluate.plots.style import METHODS, field_label
from lola_ds.evaluate.report.parts import (
    TEMPLATES,
    Row,
    details,
    line_chart,
    media,
    number_table,
    text_table,
)
from lola_ds.evaluate.report.runs import Run, differences, find_runs
from lola_ds.metrics import BANDS

__all__ = ["write_report"]

FORECASTS = ("emulator", "ensemble")
BASELINES = ("persistence", "climatology", "autoencoder")


def write_report(paths: Sequence[Path], out: Path, title: str = "Evaluation report") -> list[str]:
    """Writes a page that compares evaluations, atomically.

    Arguments:
        paths: Folders of results, or folders of such folders.
        out: The HTML file.
        title: The title of the page.

    Returns:
        The names of the runs on the page.

    Raises:
        FileNotFoundError: A folder has no results.
        ValueError: Results are damaged.
    """
    runs = find_runs(paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, _page(runs, title))
    return [run.name for run in runs]


def _page(runs: Sequence[Run], title: str) -> str:
    makers: list[tuple[str, str, Callable[[Sequence[Run]], Markup]]] = [
        ("overview", "Overview", _overview),
        ("configuration", "Configuration", _configuration),
        ("training", "Training", _training),
        ("forecasts", "Forecasts", _forecasts),
        ("ensembles", "Ensembles", _ensembles),
        ("spectra", "Scales", _spectra),
        ("reconstructions", "Reconstructions", _reconstructions),
        ("figures", "Figures", _figures),
    ]
    sections = [(key, name, content) for key, name, make in makers if (content := make(runs))]
    return TEMPLATES.get_template("page.html.j2").render(
        title=title, runs=len(runs), sections=sections
    )


def _overview(runs: Sequence[Run]) -> Markup:
    rows, compared = [], any(run.emulates for run in runs)
    for run in runs:
        summary, timing = run.summary, run.summary.get("timing", {})
        method = _headline(run)
        ratio = summary.get("ratio_to_persistence", {}).get(method, {}).get("mean")
        rows.append(
            Row(
                f"{run.name} ({run.task})",
                [
                    run.model.get("parameters"),
                    summary["trajectories"],
                    summary["members"],
                    summary["vrmse"][method]["mean"],
                    ratio,
                    summary.get("correlation_time", {}).get(method),
                    _mean(summary.get("ensemble", {}).get("spread_skill")),
                    _milliseconds(timing, "generation"),
                    _milliseconds(timing, "decoding") or _milliseconds(timing, "reconstruction"),
                ],
                baseline=compared and not run.emulates,
            )
        )
    caption = (
        "One line per run: of an ensemble its mean, averaged over fields, lead times and "
        "trajectories. Correlation time: until the correlation with the truth falls below 0.8."
    )
    columns = ["parameters", "trajectories", "members", "VRMSE", "VRMSE / persistence"]
    columns += ["correlation time", "spread / skill", "ms / state", "ms / state, decoding"]
    best = ["none", "none", "none", "low", "low", "high", "one", "low", "low"]
    rows += _baselines(runs, _overview_numbers)
    return number_table(caption, "run", columns, rows, best)


def _overview_numbers(run: Run, method: str) -> list[float | None]:
    """The numbers of a baseline in the overview, without parameters, members and timing."""
    summary = run.summary
    ratio = summary.get("ratio_to_persistence", {}).get(method, {}).get("mean")
    numbers = [summary["vrmse"][method]["mean"], ratio, summary["correlation_time"].get(method)]
    return [None, summary["trajectories"], None, *numbers, None, None, None]


def _configuration(runs: Sequence[Run]) -> Markup:
    rows = list(differences(runs).items())
    shared = [row for row in rows if sum(value is not None for value in row[1]) > 1]
    alone = [row for row in rows if row not in shared]
    columns = ["setting", *(run.name for run in runs)]
    parts = []
    if shared:
        parts.append(text_table("Settings that differ.", columns, shared))
    elif len(runs) > 1:
        parts.append(Markup("<p>All settings that the runs share are the same.</p>"))
    if alone:
        table = text_table("Settings of one run only.", columns, alone)
        parts.append(details(f"{len(alone)} settings that only one run has", table))
    for run in runs:
        content = {"model": run.model, "evaluation": run.summary["settings"]}
        text = Markup('<pre tabindex="0">{}</pre>').format(json.dumps(content, indent=2))
        parts.append(details(f"All settings of {run.name}", text))
    return _join(parts)


def _training(runs: Sequence[Run]) -> Markup:
    logged = {key for run in runs for line in run.training for key in line}
    charts = []
    for key in sorted(logged - {"step", "time"}, key=_training_order):
        lines, seen = [], []
        for index, run in enumerate(runs):
            points = [(line["step"], line[key]) for line in run.training if key in line]
            if points and points not in seen:  # evaluations of one model share its training
                seen.append(points)
                lines.append(Curve(run.name, *zip(*_thin(points)), colour=index))
        positive = all(y > 0 for line in lines for y in line.y if y == y)
        charts.append(line_chart(key, lines, "optimizer step", key, log_y=positive))
    if not charts:
        return Markup()
    first, rest = charts[:2], charts[2:]
    more = details(f"{len(rest)} more", _grid(rest)) if rest else Markup()
    return _grid(first) + more


def _forecasts(runs: Sequence[Run]) -> Markup:
    emulators = [run for run in runs if run.emulates]
    if not emulators:
        return Markup()
    charts = [
        line_chart(
            "VRMSE, mean over fields",
            list(_lead_lines(emulators, "vrmse", (*FORECASTS, *BASELINES))),
            "lead (states)",
            "VRMSE",
            log_y=True,
        ),
        line_chart(
            "Correlation with the truth, mean over fields",
            list(_lead_lines(emulators, "pearson", (*FORECASTS, "persistence", "climatology"))),
            "lead (states)",
            "correlation",
        ),
    ]
    metrics = {
        "vrmse": "VRMSE (error relative to the truth's spatial standard deviation)",
        "nrmse": "NRMSE (error relative to the truth's magnitude)",
        "linf": "Largest error of any cell, fields' units",
        "total": "Error of the domain's total, relative to the truth's magnitude",
        "wasserstein": "Wasserstein-1 distance of the values' distributions, fields' units",
        "sliced_wasserstein": "Sliced Wasserstein-1 distance of all fields together",
        "vrmse_autoencoded": "VRMSE against the autoencoded truth",
    }
    tables = [_lead_table(emulators, metric, caption) for metric, caption in metrics.items()]
    return _grid(charts) + _join(tables[:1]) + _field_tables(emulators) + _join(tables[1:])


def _ensembles(runs: Sequence[Run]) -> Markup:
    found = [run for run in runs if "ensemble" in run.methods]
    if not found:
        return Markup()
    charts = []
    for key, label in (("spread_skill", "spread / skill, corrected"), ("coverage", "coverage")):
        lines = [
            Curve(run.name, run.summary["leads"], _numbers(run.summary["ensemble"][key]), index)
            for index, run in enumerate(found)
        ]
        name = "1 is calibrated" if key == "spread_skill" else "of the range of all members"
        charts.append(line_chart(f"{label.capitalize()} ({name})", lines, "lead (states)", label))
    rows = []
    for run in found:
        values = [run.mean("ensemble", metric) for metric in ("crps", "energy", "spread", "skill")]
        summary = run.summary["ensemble"]
        calibration = [_mean(summary["spread_skill"]), _mean(summary["coverage"])]
        rows.append(Row(run.name, [*values, *calibration, summary["nominal_coverage"]]))

    def of_one_state(run: Run, method: str) -> list[float | None]:
        error, skill = run.mean(method, "mae"), run.mean(method, "rmse")
        return [error, skill, None, skill, None, None, None]

    rows += _baselines(found, of_one_state)
    columns = ["CRPS", "energy score", "spread", "skill", "spread / skill", "coverage", "nominal"]
    best = ["low", "low", "none", "low", "one", "none", "none"]
    caption = (
        "Ensemble scores, mean over fields, lead times and trajectories; fair estimates. Of a "
        "single state (baselines) the CRPS is the mean absolute error, the energy score the RMSE."
    )
    return _grid(charts) + number_table(caption, "run", columns, rows, best)


def _spectra(runs: Sequence[Run]) -> Markup:
    tables = []
    kinds = {
        "spectrum": ("Relative error of the power spectrum by band of wave number", "low"),
        "correlation": ("Correlation with the truth by band of wave number, phase kept", "high"),
    }
    for kind, (caption, best) in kinds.items():
        names = [f"{kind}_{band}" for band in BANDS]
        rows = _method_rows(runs, lambda run, m, names=names: [run.mean(m, n) for n in names])
        tables.append(number_table(caption, "method", BANDS, rows, best))
    return _join(tables)


def _reconstructions(runs: Sequence[Run]) -> Markup:
    found = [run for run in runs if not run.emulates]
    metrics = {"VRMSE": "vrmse", "NRMSE": "nrmse", "largest error": "linf", "total": "total"}
    rows = [
        Row(run.name, [run.mean("autoencoder", metric) for metric in metrics.values()])
        for run in found
    ]
    caption = "Reconstructions of the truth, mean over fields, frames and trajectories."
    return number_table(caption, "run", list(metrics), rows) if rows else Markup()


def _figures(runs: Sequence[Run]) -> Markup:
    captions = {
        "vrmse": "VRMSE against lead time, quartiles over trajectories",
        "vrmse_by_field": "VRMSE field by field",
        "spectra": "Power spectra",
        "spread_skill": "Spread and skill",
        "ranks": "Rank histograms",
    }
    parts = []
    for index, run in enumerate(runs):
        shown = {f"{name}.png": caption for name, caption in captions.items()}
        for kind, note in (("snapshots", ""), ("slices", ", cut across every axis")):
            for field in run.summary["fields"]:
                shown[f"{kind}_{field}.png"] = f"{field_label(field)}{note}"
        animation = "animation.mp4" if (run.folder / "animation.mp4").is_file() else "animation.gif"
        shown = {animation: "the first trajectory", **shown}
        pictures = _join(
            media(run.folder / name, f"{run.name}: {caption}")
            for name, caption in shown.items()
            if (run.folder / name).is_file()
        )
        content = Markup('<div class="pictures">{}</div>').format(pictures)
        parts.append(details(run.name, content, opened=index == 0))
    return _join(parts)


def _lead_lines(runs: Sequence[Run], metric: str, methods: Sequence[str]) -> Iterator[Curve]:
    """A curve per run and method; baselines that are the same in all runs are drawn once."""
    seen: list[list[float]] = []
    for index, run in enumerate(runs):
        for method in methods:
            values = run.by_lead(method, metric)
            if method not in run.methods or not len(values):
                continue
            if method in BASELINES:
                if values.tolist() in seen:
                    continue
                seen.append(values.tolist())
            one_of_two = method == "emulator" and "ensemble" in run.methods
            colour = index if method in FORECASTS else 6 if method == "persistence" else 7
            colour = 5 if method == "autoencoder" else colour
            x, y = values.index.tolist(), values.tolist()
            yield Curve(_name(run, method), x, y, colour, one_of_two or method in BASELINES)


def _lead_table(runs: Sequence[Run], metric: str, caption: str) -> Markup:
    """A metric over thirds of the lead times and over all, as in Lost in Latent Space."""
    last = max(max(run.summary["leads"]) for run in runs)
    cuts = sorted({0, round(last / 3), round(2 * last / 3), last})
    thirds = [range(a + 1, b + 1) for a, b in itertools.pairwise(cuts)]
    spans = [*thirds, range(1, last + 1)] if len(thirds) > 1 else thirds

    def values(run: Run, method: str) -> list[float | None]:
        return [
            run.mean(method, metric, span) if span[-1] <= max(run.summary["leads"]) else None
            for span in spans
        ]

    rows = _method_rows(runs, values)
    columns = [f"lead {s[0]}–{s[-1]}" if len(s) > 1 else f"lead {s[0]}" for s in spans]
    return number_table(caption, "method", columns, rows) if rows else Markup()


def _field_tables(runs: Sequence[Run]) -> Markup:
    """VRMSE by field, one table for all runs with the same fields."""
    tables = []
    for fields in dict.fromkeys(tuple(run.summary["fields"]) for run in runs):
        same = [run for run in runs if tuple(run.summary["fields"]) == fields]

        def values(run: Run, method: str, fields: tuple[str, ...] = fields) -> list[float | None]:
            return [run.summary["vrmse"][method]["by_field"].get(field) for field in fields]

        rows = _method_rows(same, values)
        caption = "VRMSE by field, mean over lead times and trajectories"
        tables.append(number_table(caption, "method", [field_label(f) for f in fields], rows))
    return _join(tables)


def _method_rows(
    runs: Sequence[Run], values: Callable[[Run, str], list[float | None]]
) -> list[Row]:
    """A row per run and method that has numbers; each baseline once, at the end."""
    rows, baselines = [], {}
    for run in runs:
        for method in run.methods:
            numbers = values(run, method)
            if all(x is None for x in numbers):
                continue
            if method in FORECASTS or not run.emulates:
                rows.append(Row(_name(run, method), numbers))
            elif method in BASELINES:
                key, name = (method, tuple(numbers)), _name(run, method)
                if any(row.name == name for k, row in baselines.items() if k != key):
                    name = f"{name} (of {run.name})"  # other trajectories
                baselines.setdefault(key, Row(name, numbers, baseline=True))
    return rows + list(baselines.values())


def _baselines(runs: Sequence[Run], values: Callable[[Run, str], list[float | None]]) -> list[Row]:
    """The rows of the baselines of forecasts."""
    return [row for row in _method_rows([r for r in runs if r.emulates], values) if row.baseline]


def _name(run: Run, method: str) -> str:
    if method in ("persistence", "climatology"):
        return METHODS[method].label
    if method == "autoencoder":
        return f"{run.name}, reconstruction" if run.emulates else run.name
    if "ensemble" not in run.methods:
        return run.name
    return (
        f"{run.name}, mean of {run.summary['members']}"
        if method == "ensemble"
        else (f"{run.name}, one member")
    )


def _headline(run: Run) -> str:
    """The method that represents a run."""
    return next(m for m in ("ensemble", "emulator", "autoencoder") if m in run.methods)


def _training_order(key: str) -> tuple[int, str]:
    order = ["train/loss", "valid/loss"]
    return (order.index(key) if key in order else len(order), key)


def _thin(points: list[Any], most: int = 400) -> list[Any]:
    step = max(1, len(points) // most)
    return points[::step]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if x is None else x for x in values]


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [x for x in values or [] if x is not None]
    return sum(known) / len(known) if known else None


def _milliseconds(timing: dict[str, Any], kind: str) -> float | None:
    seconds = timing.get(f"{kind}_seconds_per_state")
    return None if seconds is None else 1e3 * seconds


def _grid(charts: Sequence[Markup]) -> Markup:
    return Markup('<div class="charts">{}</div>').format(_join(charts)) if charts else Markup()


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup().join(parts)
