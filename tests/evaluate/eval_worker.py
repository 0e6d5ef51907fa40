"""One of several processes that evaluate a real network: python eval_worker.py SHARDS OUT."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small_emulator import make_emulator
from torch import Tensor

from lola_ds.data import ShardDataset
from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.options import SamplingOptions
from lola_ds.evaluate import Forecast, Processes, Resources, evaluate, join_processes

FIELDS = 3
FORECAST = Forecast(steps=5, members=2, start=(0, 2, 5), sampling_steps=3)
UNITS = 9  # of three trajectories


def count_forecasts(emulator: Emulator) -> list[int]:
    """Returns a list to which the seeds of all later forecasts of the emulator are appended."""
    seeds: list[int] = []
    stream = emulator.stream

    def counting(
        x0: Tensor, label: Tensor, options: SamplingOptions, *args: Any, **execution: Any
    ) -> Iterator[Tensor]:
        if options.steps == FORECAST.steps:  # not a warm-up
            seeds.extend(execution["seeds"])
        return stream(x0, label, options, *args, **execution)

    emulator.stream = counting
    return seeds


def run(shards: Path, out: Path, processes: Processes, batch: int = 2) -> list[int]:
    """Evaluates all forecasts, side by side as the batch allows; returns their seeds."""
    emulator, dataset = make_emulator(FIELDS), ShardDataset(shards)
    seeds = count_forecasts(emulator)
    options = {"train": dataset, "draw": False, "progress": False}
    resources = Resources(batch=batch)
    evaluate(emulator, dataset, out, FORECAST, resources=resources, processes=processes, **options)
    return seeds


if __name__ == "__main__":
    processes, _ = join_processes("cpu")
    seeds = run(Path(sys.argv[1]), Path(sys.argv[2]), processes)
    print(f"process {processes.index}: {len(seeds)} forecasts")
    processes.leave()
