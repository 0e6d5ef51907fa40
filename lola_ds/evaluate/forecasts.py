"""The evaluation of forecasts.

Lead k of a forecast is frame start + (context - 1 + k) · stride of its trajectory, that is k states
after the last known one. Several forecasts are made side by side, window by window. Each window is
decoded and scored a few lead times at a time and released, so that memory does not grow with the
length of forecasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lola_ds.data import ShardDataset
from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.guidance import Observations
from lola_ds.emulate.memory import release_memory
from lola_ds.emulate.options import SamplingOptions
from lola_ds.evaluate import tables
from lola_ds.evaluate.baselines import climatology, dataset_digest
from lola_ds.evaluate.output import (
    Evaluation,
    draw_tables,
    list_files,
    summarize_timing,
    write_tables,
)
from lola_ds.evaluate.plots import curves
from lola_ds.evaluate.plots.recorder import PictureRecorder
from lola_ds.evaluate.processes import Processes
from lola_ds.evaluate.resources import MemoryTerms, Resources, usable_share
from lola_ds.evaluate.scores import Scores, score_ensemble, score_states, score_truth
from lola_ds.evaluate.selection import (
    check_forecast,
    choose_trajectories,
    forecast_seed,
    frame_times,
    state_bytes,
    state_grid,
)
from lola_ds.evaluate.settings import Forecast
from lola_ds.evaluate.tables import Unit
from lola_ds.evaluate.timing import Stopwatch
from lola_ds.log import logger

__all__ = ["Forecasts"]


class Forecasts:
    """The evaluation of forecasts with one setting; see `run.EvaluationTask` and `run.evaluate`."""

    description, animated = "roll out", True

    def __init__(
        self,
        emulator: Emulator,
        dataset: ShardDataset,
        forecast: Forecast,
        trajectories: Sequence[int] | None,
        train: ShardDataset | None,
        out: Path,
        resources: Resources,
        processes: Processes,
        progress: bool,
    ) -> None:
        self.emulator, self.dataset, self.forecast = emulator, dataset, forecast
        self.train, self.out = train, out
        self.resources, self.processes, self.progress = resources, processes, progress
        chosen = choose_trajectories(dataset, trajectories, len(emulator.codec.standardize.mean))
        check_forecast(dataset, chosen, forecast, emulator)
        self.members = forecast.members if emulator.generative else 1
        self.fields, self.axes, self.grid = dataset.fields, dataset.axes, state_grid(dataset)
        self.setting = forecast.name(emulator.generative)
        self.settings = forecast.settings(emulator.generative)
        self.units = [Unit(self.setting, i, start) for i in chosen for start in forecast.starts]
        self.identity = {
            "task": "diffusion" if emulator.generative else "surrogate",
            **emulator.identity(),
            "data": dataset_digest(dataset),
            "training data": None if train is None else dataset_digest(train),
        }
        self.amount = self.members * emulator.windows(
            forecast.steps, forecast.context, forecast.overlap
        )
        self.mean: Tensor | None = None

    def prepare(self) -> int:
        """Chooses the batch sizes, warms the device up and loads the climatology."""
        emulator, unit = self.emulator, self.units[0]
        with emulator.uncompiled():
            z = next(self._stream([unit], replace(self.forecast, steps=1, sampling_steps=2)))
            window = emulator.length * z[0, 0, :, 0].numel() * z.element_size()
            advance = emulator.member_bytes(
                self.known(unit),
                self.dataset.label(unit.trajectory),
                self.forecast,
                self._observations(unit),
            )
            decoding = emulator.codec.decoding_bytes(z[0])
            terms = MemoryTerms.estimate(
                self.members, state_bytes(self.dataset), decoding, window, advance
            )
            share = usable_share(emulator.device, emulator.compiled)
            self.sizes = self.resources.batch_sizes(self.members, terms, share)
        if emulator.compiled:
            if self.progress:
                logger.info("compiling …")
            side_by_side = self.processes.share(self.units)[: self.sizes.forecasts] or [unit]
            z = next(self._stream(side_by_side, self.forecast, batch=self.sizes.members))
            emulator.decode(z[0, :, :, : self.sizes.leads], self.sizes.states, emulator.device)
        if self.train is not None:
            cache = self.out / "climatology.npz"
            if self.processes.first:
                climatology(self.train, cache, progress=self.progress)
            self.processes.wait()
            self.mean = climatology(self.train, cache, progress=False).to(emulator.device)
        return self.sizes.forecasts

    def score(
        self, units: Sequence[Unit], draw: Path | None, progress: Callable[[int], object]
    ) -> Iterator[tuple[Unit, pd.DataFrame, dict[str, float]]]:
        """Yields the rows and the timing of forecasts that are made side by side."""
        first = None if draw is None else self.units[0]
        scorers = [_ForecastScorer(self, unit, draw=unit == first) for unit in units]
        clock, generation, lead = Stopwatch(self.emulator.device), 0.0, 0
        windows = self._stream(units, self.forecast, batch=self.sizes.members, progress=progress)
        while lead < self.forecast.steps:
            clock.lap()
            z = next(windows)
            generation += clock.lap()
            release_memory()
            for scorer, states in zip(scorers, z):
                scorer.add(lead, states)
            lead += z.shape[3]
        for scorer in scorers:
            if scorer.pictures is not None and draw is not None:
                scorer.pictures.draw(draw, "emulator")
            timing = {"generation": generation / len(scorers), "decoding": scorer.decoding}
            states = self.members * self.forecast.steps
            yield scorer.unit, scorer.rows(), {**timing, "states": states}

    def finish(
        self,
        table: pd.DataFrame,
        timings: dict[Unit, dict[str, float]],
        folder: Path,
        draw: bool,
    ) -> Evaluation:
        """Writes summary, tables and figures of all forecasts with this setting."""
        summary = {
            "task": self.identity["task"],
            "setting": self.setting,
            **tables.summarize(table, self.members),
            "settings": {
                **self.settings,
                "start": sorted({unit.start for unit in timings}),
                "stride": self.emulator.stride,
            },
            "timing": summarize_timing(timings, self.emulator.device),
            "resources": asdict(self.resources),
        }
        files = write_tables(table, summary, folder)
        if draw:
            files += draw_tables(table, self.dataset.shape[1:], curves.TimeAxis(), folder)
        if draw and self.members > 1:
            files += [folder / "spread_skill.png", folder / "ranks.png"]
            curves.plot_spread_skill(table, self.members, files[-2])
            curves.plot_ranks(tables.mean_ranks(table), files[-1])
        text = tables.format_forecast(summary)
        spectra = tables.mean_spectra(table)
        return Evaluation(table, spectra, summary, text, list_files(folder, files))

    def frames(self, unit: Unit) -> range:
        """Returns the frames of a forecast, known ones included."""
        states, stride = self.forecast.context + self.forecast.steps, self.emulator.stride
        return range(unit.start, unit.start + (states - 1) * stride + 1, stride)

    def known(self, unit: Unit) -> Tensor:
        """Returns the known states, with shape (C, context, *S)."""
        return self._read(unit, self.frames(unit)[: self.forecast.context])

    def truth(self, unit: Unit, first: int, last: int) -> Tensor:
        """Returns the true states at leads first + 1 to last, with shape (C, t, *S)."""
        context = self.forecast.context
        chosen = self.frames(unit)[context + first : context + last]
        return self._read(unit, chosen).to(self.emulator.device)

    def scores(self, known: Tensor, u: Tensor, v: Tensor) -> dict[str, Scores]:
        """Returns the scores of every method.

        Arguments:
            known: The last known state, with shape (C, 1, *S).
            u: The truth, with shape (C, t, *S).
            v: The forecast, with shape (M, C, t, *S).
        """
        grid, latent = self.grid, self.emulator.codec.autoencoder is not None
        r = self.emulator.reconstruct(u, self.sizes.states) if latent else None
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

    def _read(self, unit: Unit, frames: range) -> Tensor:
        cut = slice(frames.start, frames.stop, frames.step)
        return self.dataset.read_trajectory(unit.trajectory, cut)

    def _observations(self, unit: Unit) -> Observations | None:
        """The observations of the truth that guide a forecast, at all lead times."""
        forecast = self.forecast
        if forecast.guidance is None:
            return None
        values = []
        for k in range(forecast.steps):  # one state in memory at a time
            u, seed = self.truth(unit, k, k + 1), forecast_seed(forecast.seed, unit, k + 1)
            values.append(self.emulator.observe(u, forecast.guidance, seed=seed).values)
        return Observations(torch.cat(values), tuple(range(1, forecast.steps + 1)))

    def _stream(
        self, units: Sequence[Unit], options: SamplingOptions, **execution: Any
    ) -> Iterator[Tensor]:
        """The forecasts of some units, one window (U, M, C', t, *S') after the other."""
        seeds = [forecast_seed(options.seed, unit) for unit in units]
        seen = [y for unit in units if (y := self._observations(unit)) is not None] or None
        known = torch.stack([self.known(unit) for unit in units])
        labels = torch.stack([self.dataset.label(unit.trajectory) for unit in units])
        return self.emulator.stream(known, labels, options, seen, seeds=seeds, **execution)


class _ForecastScorer:
    """Scores one forecast while its windows are computed."""

    def __init__(self, task: Forecasts, unit: Unit, draw: bool) -> None:
        self.task, self.unit = task, unit
        self.known = task.known(unit)[:, -1:].to(task.emulator.device)
        frames, context = task.frames(unit), task.forecast.context
        times = frame_times(
            task.dataset, unit.trajectory, slice(frames.start, frames.stop, frames.step)
        )
        self.times = (times - times[context - 1])[context:]
        self.pieces: list[dict[str, Scores]] = []
        self.decoding = 0.0
        self.pictures = None
        if draw:
            captions = [f"lead {k}, time {t:.3g}" for k, t in enumerate(self.times, 1)]
            titles = [f"lead time {t:.3g}" for t in self.times]
            self.pictures = PictureRecorder(
                task.fields, task.axes, titles, ["lead 0, time 0", *captions]
            )
            self.pictures.add_known(self.known[:, 0])

    def add(self, first: int, z: Tensor) -> None:
        """Decodes and scores the states z (M, C', t, *S') from lead first + 1 on."""
        task, clock = self.task, Stopwatch(self.task.emulator.device)
        for a in range(0, z.shape[2], task.sizes.leads):
            piece = z[:, :, a : a + task.sizes.leads]
            start = first + a
            u = task.truth(self.unit, start, start + piece.shape[2])
            clock.lap()
            v = task.emulator.decode(piece, task.sizes.states, task.emulator.device)
            self.decoding += clock.lap()
            release_memory()
            self.pieces.append(task.scores(self.known, u, v))
            if self.pictures is not None:
                self.pictures.add(start, u, v)
            del u, v
            release_memory()

    def rows(self) -> pd.DataFrame:
        """The rows of all lead times."""
        leads = range(1, len(self.times) + 1)
        return tables.unit_rows(self.pieces, self.unit, self.task.fields, leads, self.times)
