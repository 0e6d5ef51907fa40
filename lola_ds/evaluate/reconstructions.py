"""The evaluation of an autoencoder's reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lola_ds.data import ShardDataset
from lola_ds.emulate.codec import Codec
from lola_ds.emulate.memory import release_memory
from lola_ds.evaluate import tables
from lola_ds.evaluate.baselines import dataset_digest
from lola_ds.evaluate.output import (
    Evaluation,
    draw_tables,
    list_files,
    summarize_timing,
    write_tables,
)
from lola_ds.evaluate.plots import curves
from lola_ds.evaluate.plots.recorder import PictureRecorder
from lola_ds.evaluate.resources import MemoryTerms, Resources, usable_share
from lola_ds.evaluate.scores import score_states, score_truth
from lola_ds.evaluate.selection import choose_trajectories, frame_times, state_bytes, state_grid
from lola_ds.evaluate.tables import Unit
from lola_ds.evaluate.timing import Stopwatch

__all__ = ["Reconstructions"]

AXIS = curves.TimeAxis("time (time unit of the data)", "frame")


class Reconstructions:
    """The evaluation of some frames of each trajectory; see `run.EvaluationTask`."""

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
        chosen = choose_trajectories(dataset, trajectories, len(codec.standardize.mean))
        shortest = int(min(dataset.frames))  # of all, so that the frames do not depend on choices
        if steps < 1 or not 0 <= start <= shortest - steps:
            raise ValueError(
                f"steps={steps} frames from start={start} do not fit in trajectories of {shortest} "
                f"frames; choose steps between 1 and {shortest} and start between 0 and "
                f"{max(0, shortest - max(1, steps))}"
            )
        self.frames = [start + k for k in tables.even_indices(shortest - start, steps)]
        self.fields, self.axes, self.grid = dataset.fields, dataset.axes, state_grid(dataset)
        self.setting = f"frames{steps}"
        self.settings = {"steps": steps}
        self.units = [Unit(self.setting, i, start) for i in chosen]
        self.identity = {
            "task": "autoencoder",
            **codec.identity(),
            "data": dataset_digest(dataset),
        }

    def prepare(self) -> int:
        """Chooses the batch sizes."""
        z = self.codec.encode(self._read(self.units[0], 0, 1))[None]
        terms = MemoryTerms.estimate(1, state_bytes(self.dataset), self.codec.decoding_bytes(z))
        self.sizes = self.resources.batch_sizes(1, terms, usable_share(self.codec.device))
        return 1

    def score(
        self, units: Sequence[Unit], draw: Path | None, progress: Callable[[int], object]
    ) -> Iterator[tuple[Unit, pd.DataFrame, dict[str, float]]]:
        """Yields the rows and the timing of trajectories."""
        for unit in units:
            clock, seconds, pieces, count = Stopwatch(self.codec.device), 0.0, [], len(self.frames)
            times = frame_times(self.dataset, unit.trajectory, slice(None))
            times = (times - times[0])[self.frames]
            pictures = None
            if draw is not None and unit == self.units[0]:
                pictures = PictureRecorder(self.fields, self.axes, [f"time {t:.3g}" for t in times])
            for first in range(0, count, self.sizes.leads):
                u = self._read(unit, first, min(first + self.sizes.leads, count))
                clock.lap()
                v = self.codec.reconstruct(u, self.sizes.states)[None]
                seconds += clock.lap()
                scores = {"truth": score_truth(u, self.grid)}
                pieces.append({**scores, "autoencoder": score_states(u, v, self.grid)})
                if pictures is not None:
                    pictures.add(first, u, v)
                del u, v
                release_memory()
            if pictures is not None and draw is not None:
                pictures.draw(draw, "reconstruction")
            progress(1)
            table = tables.unit_rows(pieces, unit, self.fields, self.frames, times)
            yield unit, table, {"reconstruction": seconds, "states": count}

    def finish(
        self,
        table: pd.DataFrame,
        timings: dict[Unit, dict[str, float]],
        folder: Path,
        draw: bool,
    ) -> Evaluation:
        """Writes summary, tables and figures of all reconstructions with this setting."""
        summary = {
            "task": "autoencoder",
            "setting": self.setting,
            **tables.summarize(table, 1),
            "settings": {**self.settings, "start": sorted({unit.start for unit in timings})},
            "timing": summarize_timing(timings, self.codec.device),
            "resources": asdict(self.resources),
        }
        files = write_tables(table, summary, folder)
        if draw:
            files += draw_tables(table, self.dataset.shape[1:], AXIS, folder)
        text = tables.format_reconstruction(summary, table)
        spectra = tables.mean_spectra(table)
        return Evaluation(table, spectra, summary, text, list_files(folder, files))

    def _read(self, unit: Unit, first: int, last: int) -> Tensor:
        """The chosen frames first to last - 1, (C, t, *S), on the device."""
        pieces = [
            self.dataset.read_trajectory(unit.trajectory, slice(k, k + 1))
            for k in self.frames[first:last]
        ]
        return torch.cat(pieces, dim=1).to(self.codec.device)
