"""Evaluations: an emulator (or an autoencoder alone) over the trajectories of a split.

Both write to one folder, each file whole or not at all:

    metrics.parquet, metrics.csv   every score (see `tables`, `scores`; `store` on resuming)
    spectra.csv                    power spectra at a few lead times, mean over trajectories
    summary.json                   the headline numbers, the settings, the model, the timing
    climatology.npz                the mean of the training split
    vrmse.png, vrmse_by_field.png, spectra.png, spread_skill.png, ranks.png
    snapshots_<field>.png, animation.gif, animation.mp4

Lead k of a forecast is frame start + (context - 1 + k) · stride of its trajectory: k states after
the last known one. Forecasts are kept as latents, and decoded and scored a few lead times at a
time, so that their memory is what `Resources` allows, however long they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import ShardDataset
from ..emulate.emulator import Codec, Emulator
from ..emulate.sampling import SAMPLERS
from ..metrics import Grid
from . import figures, tables
from .baselines import climatology, dataset_digest
from .pictures import Pictures, picture_files
from .processes import ALONE, Processes
from .scores import Scores, join_leads, score_ensemble, score_states, score_truth
from .store import ResultStore, Unit

__all__ = [
    "Evaluation",
    "Forecast",
    "Resources",
    "evaluate",
    "evaluate_autoencoder",
    "spread_trajectories",
]

SPECTRA = 3  # lead times with spectra
RECONSTRUCTION_AXIS = figures.TimeAxis("time (time unit of the data)", "frame")


@dataclass(frozen=True)
class Forecast:
    """How an emulator is run.

    Arguments:
        steps: states to emulate.
        members: members of the ensemble; a surrogate has one.
        start: first known frame, or several: a forecast from each.
        context: known states.
        overlap: states a window shares with the one before.
        sampler: a denoiser's sampler.
        sampling_steps: its number of steps.
        seed: of a denoiser's noise; each (trajectory, start, member) has its own.
    """

    steps: int = 8
    members: int = 8
    start: int | Sequence[int] = 0
    context: int = 1
    overlap: int = 1
    sampler: str = "ab"
    sampling_steps: int = 16
    seed: int = 0

    @property
    def starts(self) -> list[int]:
        return [self.start] if isinstance(self.start, int) else list(self.start)

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers of one forecast depend on."""
        return {key: value for key, value in asdict(self).items() if key != "start"}


@dataclass(frozen=True)
class Resources:
    """What an evaluation may use; the numbers do not depend on it.

    Arguments:
        batch: members through the model, and states through the autoencoder, at a time.
        memory: GB (10⁹ bytes) for decoded states, decoding and scores, the model and the latents
            of one forecast not included. Lead times are decoded as many at a time as fit.
    """

    batch: int = 16
    memory: float = 4.0

    def plan(self, state: int, members: int, decoding: int) -> tuple[int, int]:
        """Lead times held decoded, and states decoded, at a time.

        Half the memory is for decoding, half for decoded states and their scores.

        Arguments:
            state: bytes of one state of all fields in float32.
            members: members of the ensemble.
            decoding: bytes that decoding one state takes.

        Raises:
            ValueError: one lead time does not fit.
        """
        half = int(self.memory * 1e9 / 2)
        scores = (_ENSEMBLE * members + _STATE) * state
        each = (members + 4) * state
        if half < max(scores + each, decoding):
            least = 2 * max(scores + each, decoding) / 1e9
            raise ValueError(
                f"memory={self.memory:g}: {members} members of one lead time take "
                f"{least:.2g} GB; give memory={least * 1.01:.2g} or more, or fewer members"
            )
        return (half - scores) // each, max(1, min(self.batch, half // max(1, decoding)))


# Working memory of scores, in states of all fields: per member of the ensemble, and of one state.
_ENSEMBLE, _STATE = 8, 48


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        table: the rows of `metrics.parquet`.
        spectra: the rows of `spectra.csv`.
        summary: the content of `summary.json`.
        text: a short table for the terminal.
        files: what was written.
    """

    table: pd.DataFrame
    spectra: pd.DataFrame
    summary: dict[str, Any]
    text: str
    files: list[Path]


class _Work(Protocol):
    """An evaluation cut into units, each computed on its own."""

    units: list[Unit]
    identity: dict[str, Any]
    fields: tuple[str, ...]
    description: str
    amount: int
    animated: bool

    def prepare(self, out: Path, processes: Processes, progress: bool) -> None: ...

    def score(
        self, unit: Unit, draw: Path | None, progress: Callable[[int], object]
    ) -> tuple[pd.DataFrame, dict[str, float]]: ...

    def finish(
        self, table: pd.DataFrame, timings: dict[Unit, dict[str, float]], out: Path, draw: bool
    ) -> Evaluation: ...


def evaluate(
    emulator: Emulator,
    dataset: ShardDataset,
    out: str | Path,
    forecast: Forecast = Forecast(),
    trajectories: Sequence[int] | None = None,
    *,
    train: ShardDataset | None = None,
    resources: Resources = Resources(),
    processes: Processes = ALONE,
    draw: bool = True,
    progress: bool = True,
) -> Evaluation | None:
    """Forecasts trajectories; scores them against the truth, baselines and the autoencoder.

    Forecasts that are in `out` already are not computed again; those of other trajectories or
    starts are added, and the tables and figures are of all of them.

    Arguments:
        emulator: the emulator; states are its `stride` frames apart.
        dataset: physical trajectories.
        out: the folder of results.
        forecast: how the emulator is run.
        trajectories: which trajectories of the dataset (all by default).
        train: the training split, for the climatology; without it, there is no such baseline.
        resources: memory and batch size.
        processes: those that share the work.
        draw: whether to draw figures and animations.
        progress: whether to show a progress bar with the time left.

    Returns:
        The evaluation; None in all processes but the first.

    Raises:
        ValueError: a trajectory is too short, the dataset does not hold the emulator's fields, the
            folder holds other results or damaged ones, the memory does not suffice.
    """
    work = _Forecasts(emulator, dataset, forecast, trajectories, train, resources)
    return _run(work, Path(out), processes, draw, progress)


def evaluate_autoencoder(
    codec: Codec,
    dataset: ShardDataset,
    out: str | Path,
    steps: int = 8,
    start: int = 0,
    trajectories: Sequence[int] | None = None,
    *,
    resources: Resources = Resources(),
    processes: Processes = ALONE,
    draw: bool = True,
    progress: bool = True,
) -> Evaluation | None:
    """Scores an autoencoder's reconstructions of `steps` frames spread evenly over trajectories.

    Rows have the frame's number as lead and its time, from the trajectory's beginning.

    Arguments:
        codec: the autoencoder and the fields' statistics.
        dataset: physical trajectories.
        out, trajectories, resources, processes, draw, progress: as for `evaluate`.
        steps: frames of each trajectory, from `start` to its end.
        start: the first frame.

    Raises:
        ValueError: as `evaluate`.
    """
    work = _Reconstructions(codec, dataset, steps, start, trajectories, resources)
    return _run(work, Path(out), processes, draw, progress)


def _run(
    work: _Work, out: Path, processes: Processes, draw: bool, progress: bool
) -> Evaluation | None:
    """Computes the units that are missing, each process its share; the first one concludes."""
    store = ResultStore(out, work.identity)
    names = picture_files(work.fields, work.animated)
    pictures = draw and not all((out / name).is_file() for name in names)
    first = work.units[0]
    missing = [u for u in work.units if u not in store.done or (u == first and pictures)]
    processes.wait()  # nobody writes before everybody has looked
    if missing:
        work.prepare(out, processes, progress)
        out.mkdir(parents=True, exist_ok=True)
    mine = processes.share(missing)
    with tqdm(
        total=len(mine) * work.amount,
        desc=work.description,
        unit="window",
        disable=not (progress and processes.first),
    ) as bar:
        for unit in mine:
            where = out if unit == first and pictures else None
            store.add(unit, *work.score(unit, where, bar.update))
    processes.wait()
    found = work.finish(*store.merge(), out, draw) if processes.first else None
    processes.wait()
    return found


class _Forecasts:
    """Forecasts of an emulator, as units of work."""

    description, animated = "roll out", True

    def __init__(
        self,
        emulator: Emulator,
        dataset: ShardDataset,
        forecast: Forecast,
        trajectories: Sequence[int] | None,
        train: ShardDataset | None,
        resources: Resources,
    ) -> None:
        self.emulator, self.dataset, self.forecast = emulator, dataset, forecast
        self.train, self.resources = train, resources
        chosen = _choose(dataset, trajectories, len(emulator.codec.standardize.mean))
        _check_forecast(dataset, chosen, forecast, emulator)
        self.members = forecast.members if emulator.generative else 1
        self.fields, self.grid = dataset.fields, _grid(dataset)
        self.units = [Unit(i, start) for i in chosen for start in forecast.starts]
        self.identity = {
            "task": "diffusion" if emulator.generative else "surrogate",
            **forecast.settings,
            "members": self.members,
            **emulator.identity(),
            "data": dataset_digest(dataset),
            "training data": None if train is None else dataset_digest(train),
        }
        self.amount = self.members * emulator.windows(
            forecast.steps, forecast.context, forecast.overlap
        )
        self.mean: Tensor | None = None

    def prepare(self, out: Path, processes: Processes, progress: bool) -> None:
        """A short forecast that warms the device up for the timing, then the climatology."""
        unit = self.units[0]
        z = self._generate(unit, self._known(unit), steps=1, sampling_steps=2)
        self.leads, self.batch = self.resources.plan(
            state=4 * int(np.prod(self.dataset.shape)),
            members=self.members,
            decoding=self.emulator.codec.decoding_bytes(z),
        )
        if self.train is not None:
            cache = out / "climatology.npz"
            if processes.first:
                climatology(self.train, cache, progress=progress)
            processes.wait()
            self.mean = climatology(self.train, cache, progress=False).to(self.emulator.device)

    def score(
        self, unit: Unit, draw: Path | None, progress: Callable[[int], object]
    ) -> tuple[pd.DataFrame, dict[str, float]]:
        """Tidy rows of one forecast, and the seconds that its generation and decoding took."""
        emulator, forecast = self.emulator, self.forecast
        known = self._known(unit)
        clock = _Clock(emulator.device)
        z = self._generate(unit, known, progress=progress)
        generation = clock.lap()
        times = frame_times(self.dataset, unit.trajectory, self._frames(unit))
        times = (times - times[forecast.context - 1])[forecast.context :]
        pictures = self._pictures(times) if draw else None
        if pictures is not None:
            pictures.add_known(known[:, -1])
        decoding, pieces = 0.0, []
        for first in range(0, forecast.steps, self.leads):
            last = min(first + self.leads, forecast.steps)
            u = self._truth(unit, first, last)
            clock.lap()
            v = emulator.decode(z[:, :, first:last], self.batch, emulator.device)
            decoding += clock.lap()
            pieces.append(self._score(known[:, -1:].to(u), u, v))
            if pictures is not None:
                pictures.add(first, u, v)
        if pictures is not None and draw is not None:
            pictures.draw(draw, "emulator")
        scores = {method: join_leads([p[method] for p in pieces]) for method in pieces[0]}
        table = _rows(scores, unit, self.fields, range(1, forecast.steps + 1), times)
        states = self.members * forecast.steps
        return table, {"generation": generation, "decoding": decoding, "states": states}

    def finish(
        self, table: pd.DataFrame, timings: dict[Unit, dict[str, float]], out: Path, draw: bool
    ) -> Evaluation:
        """Summary, tables and figures of all forecasts in the folder."""
        summary = {
            "task": self.identity["task"],
            **tables.summarize(table, self.members),
            "settings": {
                **self.forecast.settings,
                "start": sorted({unit.start for unit in timings}),
                "members": self.members,
                "stride": self.emulator.stride,
            },
            "timing": _timing(timings, self.emulator.device),
            "resources": asdict(self.resources),
        }
        files = _write_tables(table, summary, out)
        if draw:
            files += _draw_tables(table, self.dataset.shape[1:], figures.TimeAxis(), out)
        if draw and self.members > 1:
            files += [out / "spread_skill.png", out / "ranks.png"]
            figures.plot_spread_skill(table, self.members, files[-2])
            figures.plot_ranks(tables.mean_ranks(table), files[-1])
        text = tables.format_forecast(summary)
        return Evaluation(table, tables.mean_spectra(table), summary, text, _all_files(out, files))

    def _frames(self, unit: Unit) -> slice:
        """The frames of a forecast, known ones included."""
        states = self.forecast.context + self.forecast.steps
        stride = self.emulator.stride
        return slice(unit.start, unit.start + (states - 1) * stride + 1, stride)

    def _known(self, unit: Unit) -> Tensor:
        stride = self.emulator.stride
        stop = unit.start + (self.forecast.context - 1) * stride + 1
        return self.dataset.read_trajectory(unit.trajectory, slice(unit.start, stop, stride))

    def _truth(self, unit: Unit, first: int, last: int) -> Tensor:
        """States after the known ones, from lead first + 1 to last, on the emulator's device."""
        frames = range(*self._frames(unit).indices(int(self.dataset.frames[unit.trajectory])))
        chosen = frames[self.forecast.context + first : self.forecast.context + last]
        cut = slice(chosen.start, chosen.stop, chosen.step)
        return self.dataset.read_trajectory(unit.trajectory, cut).to(self.emulator.device)

    def _generate(self, unit: Unit, known: Tensor, **options: Any) -> Tensor:
        forecast = self.forecast
        given = {
            "steps": forecast.steps,
            "members": self.members,
            "seed": trajectory_seed(forecast.seed, unit.trajectory, unit.start),
            "context": forecast.context,
            "overlap": forecast.overlap,
            "sampler": forecast.sampler,
            "sampling_steps": forecast.sampling_steps,
            "batch": self.resources.batch,
        }
        label = self.dataset.label(unit.trajectory)
        return self.emulator.generate(known, label, **{**given, **options})

    def _pictures(self, times: np.ndarray) -> Pictures:
        captions = ["lead 0, time 0"] + [f"lead {k}, time {t:.3g}" for k, t in enumerate(times, 1)]
        return Pictures(self.fields, [f"lead time {t:.3g}" for t in times], captions)

    def _score(self, known: Tensor, u: Tensor, v: Tensor) -> dict[str, Scores]:
        """Scores of every method: known (C, 1, *S), truth u (C, t, *S), forecast v (M, …)."""
        grid, latent = self.grid, self.emulator.codec.autoencoder is not None
        r = self.emulator.reconstruct(u, self.batch) if latent else None
        scores = {
            "truth": score_truth(u, grid),
            "emulator": score_states(u, v, grid, r),
            "persistence": score_states(u, known.expand_as(u)[None], grid),
        }
        if self.mean is not None:
            scores["climatology"] = score_states(u, self.mean[:, None].expand_as(u)[None], grid)
        if r is not None:
            scores["autoencoder"] = score_states(u, r[None], grid)
        if len(v) > 1:
            scores["ensemble"] = score_ensemble(u, v, grid)
        return scores


class _Reconstructions:
    """Reconstructions of an autoencoder, as units of work."""

    description, animated, amount = "reconstruct", False, 1

    def __init__(
        self,
        codec: Codec,
        dataset: ShardDataset,
        steps: int,
        start: int,
        trajectories: Sequence[int] | None,
        resources: Resources,
    ) -> None:
        self.codec, self.dataset, self.resources = codec, dataset, resources
        chosen = _choose(dataset, trajectories, len(codec.standardize.mean))
        shortest = min(int(dataset.frames[i]) for i in chosen)
        if steps < 1 or not 0 <= start <= shortest - steps:
            raise ValueError(
                f"steps={steps} frames from start={start} do not fit in trajectories of {shortest} "
                f"frames; choose steps between 1 and {shortest} and start between 0 and "
                f"{max(0, shortest - max(1, steps))}"
            )
        self.frames = [start + k for k in tables.evenly(shortest - start, steps)]
        self.fields, self.grid = dataset.fields, _grid(dataset)
        self.settings = {"steps": steps, "start": start}
        self.units = [Unit(i, start) for i in chosen]
        self.identity = {
            "task": "autoencoder",
            "frames": self.frames,
            **codec.identity(),
            "data": dataset_digest(dataset),
        }

    def prepare(self, out: Path, processes: Processes, progress: bool) -> None:
        """Finds how many frames fit in memory."""
        z = self.codec.encode(self._read(self.units[0], 0, 1))[None]
        self.chunk, self.batch = self.resources.plan(
            state=4 * int(np.prod(self.dataset.shape)),
            members=1,
            decoding=self.codec.decoding_bytes(z),
        )

    def score(
        self, unit: Unit, draw: Path | None, progress: Callable[[int], object]
    ) -> tuple[pd.DataFrame, dict[str, float]]:
        """Tidy rows of one trajectory, and the seconds that encoding and decoding took."""
        clock, seconds, pieces, count = _Clock(self.codec.device), 0.0, [], len(self.frames)
        times = frame_times(self.dataset, unit.trajectory, slice(None))
        times = (times - times[0])[self.frames]
        pictures = Pictures(self.fields, [f"time {t:.3g}" for t in times]) if draw else None
        for first in range(0, count, self.chunk):
            u = self._read(unit, first, min(first + self.chunk, count))
            clock.lap()
            v = self.codec.reconstruct(u, self.batch)[None]
            seconds += clock.lap()
            scores = {"truth": score_truth(u, self.grid)}
            pieces.append({**scores, "autoencoder": score_states(u, v, self.grid)})
            if pictures is not None:
                pictures.add(first, u, v)
        if pictures is not None and draw is not None:
            pictures.draw(draw, "reconstruction")
        scores = {method: join_leads([p[method] for p in pieces]) for method in pieces[0]}
        progress(1)
        table = _rows(scores, unit, self.fields, self.frames, times)
        return table, {"reconstruction": seconds, "states": count}

    def finish(
        self, table: pd.DataFrame, timings: dict[Unit, dict[str, float]], out: Path, draw: bool
    ) -> Evaluation:
        """Summary, tables and figures of all reconstructions in the folder."""
        summary = {
            "task": "autoencoder",
            **tables.summarize(table, 1),
            "settings": self.settings,
            "timing": _timing(timings, self.codec.device),
            "resources": asdict(self.resources),
        }
        files = _write_tables(table, summary, out)
        if draw:
            files += _draw_tables(table, self.dataset.shape[1:], RECONSTRUCTION_AXIS, out)
        text = tables.format_reconstruction(summary, table)
        return Evaluation(table, tables.mean_spectra(table), summary, text, _all_files(out, files))

    def _read(self, unit: Unit, first: int, last: int) -> Tensor:
        """The chosen frames first..last - 1, (C, t, *S), on the codec's device."""
        pieces = [
            self.dataset.read_trajectory(unit.trajectory, slice(k, k + 1))
            for k in self.frames[first:last]
        ]
        return torch.cat(pieces, dim=1).to(self.codec.device)


class _Clock:
    """Seconds between laps; a GPU is waited for at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds = now - getattr(self, "_last", now)
        self._last = now
        return seconds


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


def trajectory_seed(seed: int, trajectory: int, start: int = 0) -> int:
    """The seed of a forecast's noise, whichever others are evaluated, in whatever order."""
    high, low = np.random.SeedSequence([seed, trajectory, start]).generate_state(2).tolist()
    return (high >> 1) << 32 | low


def frame_times(dataset: ShardDataset, trajectory: int, frames: slice) -> np.ndarray:
    """Times of frames in the data's time unit, from the trajectory's metadata."""
    time, count = dataset.meta(trajectory)["time"], int(dataset.frames[trajectory])
    if "values" in time:
        times = np.asarray(time["values"], np.float64)
    else:
        times = time["start"] + time["step"] * np.arange(count)
    return times[frames]


def _grid(dataset: ShardDataset) -> Grid:
    """The spatial axes of a dataset, all of whose trajectories share them."""
    space = dataset.meta(0)["space"]
    return Grid(dataset.shape[1:], [space.get(axis, {}).get("values") for axis in dataset.axes])


def _choose(dataset: ShardDataset, trajectories: Sequence[int] | None, channels: int) -> list[int]:
    """The trajectories to evaluate, of a dataset that holds what the model reads."""
    if dataset.kind != "fields" or dataset.shape[0] != channels:
        raise ValueError(
            f"the data holds {dataset.kind} with {dataset.shape[0]} channels, the model was made "
            f"for {channels} physical fields; give data= the shards of `lola-ds shard`"
        )
    everything = range(dataset.trajectories)
    chosen = list(dict.fromkeys(everything if trajectories is None else trajectories))
    bad = [i for i in chosen if not 0 <= i < dataset.trajectories]
    if bad or not chosen:
        raise ValueError(
            f"trajectories={bad or chosen}: the split holds trajectories 0 to "
            f"{dataset.trajectories - 1}"
        )
    return chosen


def _check_forecast(
    dataset: ShardDataset, chosen: Sequence[int], forecast: Forecast, emulator: Emulator
) -> None:
    """Refuses a forecast that the model cannot make or a trajectory cannot check."""
    start, stride, known = max(forecast.starts), emulator.stride, forecast.context
    for name, value, least in (
        ("steps", forecast.steps, 1),
        ("members", forecast.members, 1),
        ("start", min(forecast.starts), 0),
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
    if forecast.sampler not in SAMPLERS:
        raise ValueError(f"sampler='{forecast.sampler}' is unknown; known: {', '.join(SAMPLERS)}")
    shortest = min(int(dataset.frames[i]) for i in chosen)
    last = start + (known + forecast.steps - 1) * stride
    if last >= shortest:
        most = (shortest - 1 - start) // stride - known + 1
        fix = f"steps={most} or less" if most > 0 else "an earlier start= or a smaller context="
        raise ValueError(
            f"steps={forecast.steps} with context={known} and start={start} needs {last + 1} "
            f"frames (states are {stride} frames apart), trajectories have {shortest}; choose {fix}"
        )


def _rows(
    scores: dict[str, Scores],
    unit: Unit,
    fields: Sequence[str],
    leads: Sequence[int],
    times: np.ndarray,
) -> pd.DataFrame:
    """The tidy rows of all methods on one unit."""
    at = tables.evenly(len(leads), SPECTRA)
    parts = [
        tables.score_rows(score, method, *unit, fields, leads, times.tolist(), at)
        for method, score in scores.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _timing(timings: dict[Unit, dict[str, float]], device: torch.device) -> dict[str, Any]:
    """Seconds a state, over all units; the device was warm and waited for."""
    states = sum(timing["states"] for timing in timings.values())
    kinds = [kind for kind in next(iter(timings.values())) if kind != "states"]
    sums = {kind: sum(timing[kind] for timing in timings.values()) for kind in kinds}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    each = {f"{kind}_seconds_per_state": total / states for kind, total in sums.items()}
    return {"device": name, "threads": torch.get_num_threads(), "states": states, **each}


def _write_tables(table: pd.DataFrame, summary: dict[str, Any], out: Path) -> list[Path]:
    tables.write_csv(tables.mean_spectra(table), out / "spectra.csv")
    tables.write_json(summary, out / "summary.json")
    return [
        out / name for name in ("metrics.parquet", "metrics.csv", "spectra.csv", "summary.json")
    ]


def _draw_tables(
    table: pd.DataFrame, shape: Sequence[int], axis: figures.TimeAxis, out: Path
) -> list[Path]:
    files = [out / "vrmse.png", out / "vrmse_by_field.png", out / "spectra.png"]
    figures.plot_error(table, files[0], axis=axis)
    figures.plot_error_by_field(table, files[1], axis=axis)
    figures.plot_spectra(tables.mean_spectra(table), shape, files[2], axis=axis)
    return files


def _all_files(out: Path, files: Sequence[Path]) -> list[Path]:
    """`files` and the pictures and caches beside them."""
    others = (*out.glob("snapshots_*.png"), *out.glob("animation.*"), *out.glob("climatology.npz"))
    return [*files, *sorted(others)]
