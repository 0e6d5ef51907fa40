"""Evaluations: an emulator (or an autoencoder alone) over the trajectories of a split.

Both write to one folder, each file whole or not at all:

    metrics.csv      every score (see `lola_ds.evaluate.tables`)
    spectra.csv      power spectra at a few lead times, mean over trajectories
    summary.json     the headline numbers and the settings
    vrmse.png, vrmse_by_field.png, spectra.png, spread_skill.png, snapshots_<field>.png
    animation.gif, animation.mp4

Lead k of a forecast is frame start + (context - 1 + k) · stride of its trajectory: k states after
the last known one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import ShardDataset
from ..emulate.emulator import Codec, Emulator
from . import figures, tables
from .animation import animate
from .scores import Scores, score_ensemble, score_states, score_truth

__all__ = [
    "Evaluation",
    "Forecast",
    "evaluate",
    "evaluate_autoencoder",
    "score_autoencoder",
    "score_emulator",
    "spread_trajectories",
]

SPECTRA = 3  # lead times with spectra
SNAPSHOTS = 5  # lead times with pictures
RECONSTRUCTION_AXIS = figures.TimeAxis("time (time unit of the data)", "frame")


@dataclass(frozen=True)
class Forecast:
    """How an emulator is run.

    Arguments:
        steps: states to emulate.
        members: members of the ensemble; a surrogate has one.
        start: first known frame.
        context: known states.
        overlap: states a window shares with the one before.
        sampler: a denoiser's sampler.
        sampling_steps: its number of steps.
        seed: of a denoiser's noise; each (trajectory, member) has its own.
    """

    steps: int = 8
    members: int = 8
    start: int = 0
    context: int = 1
    overlap: int = 1
    sampler: str = "ab"
    sampling_steps: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        table: the rows of `metrics.csv`.
        spectra: the rows of `spectra.csv`.
        summary: the content of `summary.json`.
        text: a short table for the terminal.
        times: of the states below, from the first.
        truth: states of the first trajectory, (C, T, *S).
        states: what the model made of them, (M, C, T, *S); a forecast starts at the known state.
    """

    table: pd.DataFrame
    spectra: pd.DataFrame
    summary: dict[str, Any]
    text: str
    times: np.ndarray
    truth: Tensor
    states: Tensor


@dataclass
class _Collector:
    """The tables of an evaluation as they grow, trajectory by trajectory."""

    fields: Sequence[str]
    leads: Sequence[int]
    start: int

    def __post_init__(self) -> None:
        self.spectra_at = tables.evenly(len(self.leads), SPECTRA)
        self._rows: list[pd.DataFrame] = []
        self._spectra: list[pd.DataFrame] = []

    def add(self, trajectory: int, times: Sequence[float], scores: dict[str, Scores]) -> None:
        """Adds the scores of every method on one trajectory."""
        for method, score in scores.items():
            where = (score, method, trajectory)
            axes = (self.fields, self.leads, times)
            self._rows.append(tables.score_rows(*where, self.start, *axes))
            self._spectra.append(tables.spectrum_rows(*where, *axes, self.spectra_at))

    @property
    def table(self) -> pd.DataFrame:
        return pd.concat(self._rows, ignore_index=True)

    @property
    def spectra(self) -> pd.DataFrame:
        return tables.mean_spectra(pd.concat(self._spectra, ignore_index=True))


def evaluate(
    emulator: Emulator,
    dataset: ShardDataset,
    out: str | Path,
    forecast: Forecast = Forecast(),
    trajectories: Sequence[int] | None = None,
    progress: bool = True,
) -> tuple[Evaluation, list[Path]]:
    """Scores an emulator (see `score_emulator`) and writes tables, figures and animations.

    Arguments:
        out: the folder of results; files of an earlier evaluation are replaced.

    Returns:
        The evaluation and the files written.
    """
    evaluation = score_emulator(emulator, dataset, forecast, trajectories, progress)
    out = _folder(out)
    files = _write_tables(evaluation, out)
    files += _draw_tables(evaluation, figures.TimeAxis(), out)
    if len(evaluation.states) > 1:
        files.append(out / "spread_skill.png")
        figures.plot_spread_skill(evaluation.table, len(evaluation.states), files[-1])
    files += _draw_forecast(evaluation, dataset.fields, out)
    return evaluation, files


def evaluate_autoencoder(
    codec: Codec,
    dataset: ShardDataset,
    out: str | Path,
    steps: int = 8,
    start: int = 0,
    trajectories: Sequence[int] | None = None,
    progress: bool = True,
) -> tuple[Evaluation, list[Path]]:
    """Scores an autoencoder (see `score_autoencoder`) and writes tables and figures.

    Arguments:
        out: the folder of results; files of an earlier evaluation are replaced.

    Returns:
        The evaluation and the files written.
    """
    evaluation = score_autoencoder(codec, dataset, steps, start, trajectories, progress)
    out = _folder(out)
    files = _write_tables(evaluation, out)
    files += _draw_tables(evaluation, RECONSTRUCTION_AXIS, out)
    files += _draw_reconstructions(evaluation, dataset.fields, out)
    return evaluation, files


def score_emulator(
    emulator: Emulator,
    dataset: ShardDataset,
    forecast: Forecast = Forecast(),
    trajectories: Sequence[int] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Forecasts trajectories; scores them against the truth, persistence and the autoencoder.

    Arguments:
        emulator: the emulator; states are its `stride` frames apart.
        dataset: physical trajectories.
        forecast: how the emulator is run.
        trajectories: which trajectories of the dataset (all by default).
        progress: whether to show a progress bar with the time left.

    Raises:
        ValueError: a trajectory is too short, or the dataset does not hold the emulator's fields.
    """
    chosen = _choose(dataset, trajectories, len(emulator.codec.standardize.mean))
    frames = _window(dataset, chosen, forecast, emulator)
    members = forecast.members if emulator.generative else 1
    context = forecast.context
    collector = _Collector(dataset.fields, range(1, forecast.steps + 1), forecast.start)
    total = len(chosen) * members * emulator.windows(forecast.steps, context, forecast.overlap)
    drawn = None
    with tqdm(total=total, desc="roll out", unit="window", disable=not progress) as bar:
        for i in chosen:
            x = dataset.read_trajectory(i, frames)
            v = emulator.rollout(
                x[:, :context],
                dataset.label(i),
                forecast.steps,
                members=members,
                seed=trajectory_seed(forecast.seed, i),
                context=context,
                overlap=forecast.overlap,
                sampler=forecast.sampler,
                sampling_steps=forecast.sampling_steps,
                progress=bar.update,
            )
            x = x[:, context - 1 :]  # from the last known state on
            times = frame_times(dataset, i, frames)[context - 1 :]
            times = times - times[0]
            collector.add(i, times[1:], _score(emulator, x, v))
            if drawn is None:
                known = x[None, :, :1].expand(members, *[-1] * x.ndim)
                drawn = (times, x, torch.cat([known, v], dim=2))
    assert drawn is not None
    summary = {
        "task": "diffusion" if emulator.generative else "surrogate",
        **tables.summarize(collector.table, members),
        "settings": {**asdict(forecast), "members": members, "stride": emulator.stride},
    }
    text = tables.format_forecast(summary)
    return Evaluation(collector.table, collector.spectra, summary, text, *drawn)


def score_autoencoder(
    codec: Codec,
    dataset: ShardDataset,
    steps: int = 8,
    start: int = 0,
    trajectories: Sequence[int] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores an autoencoder's reconstructions of `steps` frames spread evenly over trajectories.

    Rows have the frame's number as lead and its time, from the trajectory's beginning.

    Arguments:
        codec: the autoencoder and the fields' statistics.
        dataset: physical trajectories.
        steps: frames of each trajectory, from `start` to its end.
        start: the first frame.
        trajectories: which trajectories of the dataset (all by default).
        progress: whether to show a progress bar with the time left.

    Raises:
        ValueError: a trajectory is too short, or the dataset holds other fields.
    """
    chosen = _choose(dataset, trajectories, len(codec.standardize.mean))
    shortest = min(int(dataset.frames[i]) for i in chosen)
    if steps < 1 or not 0 <= start <= shortest - steps:
        raise ValueError(
            f"steps={steps} frames from start={start} do not fit in trajectories of {shortest} "
            f"frames; choose steps between 1 and {shortest} and start between 0 and "
            f"{max(0, shortest - max(1, steps))}"
        )
    frames = [start + k for k in tables.evenly(shortest - start, steps)]
    collector = _Collector(dataset.fields, frames, start)
    drawn = None
    for i in tqdm(chosen, desc="reconstruct", unit="trajectory", disable=not progress):
        u = torch.cat([dataset.read_trajectory(i, slice(k, k + 1)) for k in frames], dim=1)
        v = codec.reconstruct(u)[None]
        times = frame_times(dataset, i, slice(0, shortest))
        times = (times - times[0])[frames]
        scores = {"truth": score_truth(u), "autoencoder": score_states(u, v)}
        collector.add(i, times, scores)
        drawn = drawn or (times, u, v)
    assert drawn is not None
    summary = {
        "task": "autoencoder",
        **tables.summarize(collector.table, 1),
        "settings": {"steps": steps, "start": start},
    }
    text = tables.format_reconstruction(summary, collector.table)
    return Evaluation(collector.table, collector.spectra, summary, text, *drawn)


def spread_trajectories(dataset: ShardDataset, count: int) -> list[int]:
    """`count` trajectories spread evenly over a dataset, so that each of its parts has a share.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= dataset.trajectories:
        raise ValueError(
            f"trajectories={count}: the split holds {dataset.trajectories}; choose 1 to "
            f"{dataset.trajectories}, or all"
        )
    return tables.evenly(dataset.trajectories, count)


def trajectory_seed(seed: int, trajectory: int) -> int:
    """The seed of a trajectory's noise, whichever others are evaluated, in whatever order."""
    high, low = np.random.SeedSequence([seed, trajectory]).generate_state(2).tolist()
    return (high >> 1) << 32 | low


def frame_times(dataset: ShardDataset, trajectory: int, frames: slice) -> np.ndarray:
    """Times of frames in the data's time unit, from the trajectory's metadata."""
    time, count = dataset.meta(trajectory)["time"], int(dataset.frames[trajectory])
    if "values" in time:
        times = np.asarray(time["values"], np.float64)
    else:
        times = time["start"] + time["step"] * np.arange(count)
    return times[frames]


def _choose(dataset: ShardDataset, trajectories: Sequence[int] | None, channels: int) -> list[int]:
    """The trajectories to evaluate, of a dataset that holds what the model reads."""
    if dataset.kind != "fields" or dataset.shape[0] != channels:
        raise ValueError(
            f"the data holds {dataset.kind} with {dataset.shape[0]} channels, the model was made "
            f"for {channels} physical fields; give data= the shards of `lola-ds shard`"
        )
    chosen = list(range(dataset.trajectories)) if trajectories is None else list(trajectories)
    bad = [i for i in chosen if not 0 <= i < dataset.trajectories]
    if bad or not chosen:
        raise ValueError(
            f"trajectories={bad or chosen}: the split holds trajectories 0 to "
            f"{dataset.trajectories - 1}"
        )
    return chosen


def _window(
    dataset: ShardDataset, chosen: Sequence[int], forecast: Forecast, emulator: Emulator
) -> slice:
    """The frames of a forecast, known ones included, refused where a trajectory is too short."""
    start, stride, known = forecast.start, emulator.stride, forecast.context
    for name, value, least in (
        ("steps", forecast.steps, 1),
        ("members", forecast.members, 1),
        ("start", start, 0),
        ("sampling_steps", forecast.sampling_steps, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    for name, value in (("context", known), ("overlap", forecast.overlap)):
        if not 1 <= value < emulator.length:
            raise ValueError(
                f"{name}={value} must be between 1 and {emulator.length - 1}: the model's window "
                f"has {emulator.length} states and must predict at least one"
            )
    shortest = min(int(dataset.frames[i]) for i in chosen)
    last = start + (known + forecast.steps - 1) * stride
    if last >= shortest:
        most = (shortest - 1 - start) // stride - known + 1
        fix = f"steps={most} or less" if most > 0 else "an earlier start= or a smaller context="
        raise ValueError(
            f"steps={forecast.steps} with context={known} and start={start} needs {last + 1} "
            f"frames (states are {stride} frames apart), trajectories have {shortest}; choose {fix}"
        )
    return slice(start, last + 1, stride)


def _score(emulator: Emulator, x: Tensor, v: Tensor) -> dict[str, Scores]:
    """Scores of every method: x (C, 1 + T, *S) known state and truth, v (M, C, T, *S) forecast."""
    known, u = x[:, :1], x[:, 1:]
    scores = {
        "truth": score_truth(u),
        "emulator": score_states(u, v),
        "persistence": score_states(u, known.expand_as(u)[None]),
    }
    if emulator.codec.autoencoder is not None:
        scores["autoencoder"] = score_states(u, emulator.reconstruct(u)[None])
    if len(v) > 1:
        scores["ensemble"] = score_ensemble(u, v)
    return scores


def _folder(out: str | Path) -> Path:
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write_tables(evaluation: Evaluation, out: Path) -> list[Path]:
    files = [out / "metrics.csv", out / "spectra.csv", out / "summary.json"]
    tables.write_csv(evaluation.table, files[0])
    tables.write_csv(evaluation.spectra, files[1])
    tables.write_json(evaluation.summary, files[2])
    return files


def _draw_tables(evaluation: Evaluation, axis: figures.TimeAxis, out: Path) -> list[Path]:
    files = [out / "vrmse.png", out / "vrmse_by_field.png", out / "spectra.png"]
    figures.plot_error(evaluation.table, files[0], axis=axis)
    figures.plot_error_by_field(evaluation.table, files[1], axis=axis)
    figures.plot_spectra(evaluation.spectra, evaluation.truth.shape[2:], files[2], axis=axis)
    return files


def _draw_forecast(evaluation: Evaluation, fields: Sequence[str], out: Path) -> list[Path]:
    """Pictures of every field at a few lead times, and the animation of the first field."""
    x, v, times = evaluation.truth, evaluation.states, evaluation.times
    members, mean = len(v), v.mean(dim=0)
    chosen = [k + 1 for k in tables.evenly(len(times) - 1, SNAPSHOTS)]
    titles = [f"lead time {times[k]:.3g}" for k in chosen]
    files = []
    for c, field in enumerate(fields):
        rows = {"truth": x[c]}
        if members > 1:
            rows |= {f"member {m + 1}": v[m, c] for m in range(2)}
            rows[f"mean of {members}"] = mean[c]
        else:
            rows["emulator"] = mean[c]
        pictures = {name: states[chosen].numpy() for name, states in rows.items()}
        files.append(out / f"snapshots_{field}.png")
        error = (mean[c] - x[c])[chosen].numpy()
        figures.plot_snapshots(pictures, error, titles, field, files[-1])
    one = "member 1" if members > 1 else "emulator"
    rows = {"truth": x[0].numpy(), one: v[0, 0].numpy()}
    name = f"error of the mean of {members}" if members > 1 else "error"
    captions = [f"lead {k}, time {time:.3g}" for k, time in enumerate(times)]
    error = (mean[0] - x[0]).numpy()
    return files + animate(rows, error, name, captions, fields[0], out / "animation")


def _draw_reconstructions(evaluation: Evaluation, fields: Sequence[str], out: Path) -> list[Path]:
    """Pictures of every field at a few times."""
    u, v, times = evaluation.truth, evaluation.states[0], evaluation.times
    chosen = tables.evenly(len(times), SNAPSHOTS)
    titles = [f"time {times[k]:.3g}" for k in chosen]
    files = []
    for c, field in enumerate(fields):
        rows = {"truth": u[c, chosen].numpy(), "reconstruction": v[c, chosen].numpy()}
        files.append(out / f"snapshots_{field}.png")
        error = (v - u)[c, chosen].numpy()
        figures.plot_snapshots(rows, error, titles, field, files[-1])
    return files
