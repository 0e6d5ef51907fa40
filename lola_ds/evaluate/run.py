"""Evaluations of an emulator, or of an autoencoder alone, on the trajectories of a split.

Results are in one folder, to which further settings, trajectories and starts are added. Each file
is written atomically:

    metrics.parquet, metrics.csv   every score (see `tables`, `scores`, and `store` on resuming)
    climatology.npz                the mean of the training split
    <setting>/                     what follows from the rows of one setting:
        spectra.csv                power spectra at a few lead times, mean over trajectories
        summary.json               the headline numbers, the settings, the timing
        vrmse.png, vrmse_by_field.png, spectra.png, spread_skill.png, ranks.png
        snapshots_<field>.png, slices_<field>.png (of 3-d fields), animation.gif, animation.mp4
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from lola_ds.data import ShardDataset
from lola_ds.emulate.codec import Codec
from lola_ds.emulate.emulator import Emulator
from lola_ds.evaluate.forecasts import Forecasts
from lola_ds.evaluate.output import Evaluation
from lola_ds.evaluate.plots.recorder import picture_files
from lola_ds.evaluate.processes import SINGLE_PROCESS, Processes
from lola_ds.evaluate.reconstructions import Reconstructions
from lola_ds.evaluate.resources import Resources
from lola_ds.evaluate.settings import Forecast
from lola_ds.evaluate.store import ResultStore
from lola_ds.evaluate.tables import Unit

__all__ = ["evaluate", "evaluate_autoencoder"]

DEFAULT_FORECAST, DEFAULT_RESOURCES = Forecast(), Resources()


class EvaluationTask(Protocol):
    """An evaluation with one setting, split into units.

    Attributes:
        setting: The name of the setting.
        settings: The values of the setting.
        units: The units.
        identity: What the numbers depend on, besides the setting.
        fields: The names of the fields.
        axes: The names of the spatial axes.
        description: What the progress bar says.
        amount: The steps of the progress bar that a unit takes.
        animated: Whether there is an animation.
    """

    setting: str
    settings: dict[str, Any]
    units: list[Unit]
    identity: dict[str, Any]
    fields: tuple[str, ...]
    axes: tuple[str, ...]
    description: str
    amount: int
    animated: bool

    def prepare(self) -> int:
        """Prepares the first call of `score` and returns how many units to give it at a time."""
        ...

    def score(
        self, units: Sequence[Unit], draw: Path | None, progress: Callable[[int], object]
    ) -> Iterator[tuple[Unit, pd.DataFrame, dict[str, float]]]:
        """Yields the rows and the timing of each unit.

        Arguments:
            units: The units.
            draw: The folder for pictures of the first unit of all, or None.
            progress: Called with the number of steps done.
        """
        ...

    def finish(
        self, table: pd.DataFrame, timings: dict[Unit, dict[str, float]], folder: Path, draw: bool
    ) -> Evaluation:
        """Writes what follows from the rows of all units with this setting."""
        ...


def evaluate(
    emulator: Emulator,
    dataset: ShardDataset,
    out: str | Path,
    forecast: Forecast = DEFAULT_FORECAST,
    trajectories: Sequence[int] | None = None,
    *,
    train: ShardDataset | None = None,
    resources: Resources = DEFAULT_RESOURCES,
    processes: Processes = SINGLE_PROCESS,
    draw: bool = True,
    progress: bool = True,
) -> Evaluation | None:
    """Scores forecasts of trajectories against the truth, beside baselines and the autoencoder.

    Forecasts that `out` holds are not computed again; those of other settings, trajectories or
    starts are added. Summary and figures are of all that share the setting.

    Arguments:
        emulator: The emulator, whose states are `stride` frames apart.
        dataset: The trajectories, in physical units.
        out: The folder of results, of one emulator and dataset.
        forecast: The settings.
        trajectories: The indices of the trajectories, all by default.
        train: The training split, for the climatology. By default, there is no such baseline.
        resources: The memory and the largest batch.
        processes: The processes that share the work.
        draw: Whether to draw figures and animations.
        progress: Whether to show a progress bar.

    Returns:
        The evaluation, or None in all processes but the first.

    Raises:
        ValueError: A trajectory is too short, the dataset does not hold the emulator's fields, the
            folder holds other or damaged results, or the memory does not suffice.
    """
    task = Forecasts(
        emulator, dataset, forecast, trajectories, train, Path(out), resources, processes, progress
    )
    return _run(task, Path(out), processes, draw, progress)


def evaluate_autoencoder(
    codec: Codec,
    dataset: ShardDataset,
    out: str | Path,
    steps: int = 8,
    start: int = 0,
    trajectories: Sequence[int] | None = None,
    *,
    resources: Resources = DEFAULT_RESOURCES,
    processes: Processes = SINGLE_PROCESS,
    draw: bool = True,
    progress: bool = True,
) -> Evaluation | None:
    """Scores an autoencoder's reconstructions of frames that are spread evenly over trajectories.

    Rows have the index of the frame as lead, and its time since the beginning of the trajectory.

    Arguments:
        codec: The autoencoder and the statistics of the fields.
        dataset: The trajectories, in physical units.
        out: The folder of results, of one autoencoder and dataset.
        steps: The number of frames of each trajectory.
        start: The first frame.
        trajectories, resources, processes, draw, progress: As for `evaluate`.

    Returns:
        The evaluation, or None in all processes but the first.

    Raises:
        ValueError: As for `evaluate`.
    """
    task = Reconstructions(codec, dataset, steps, start, trajectories, resources)
    return _run(task, Path(out), processes, draw, progress)


def _run(
    task: EvaluationTask, out: Path, processes: Processes, draw: bool, progress: bool
) -> Evaluation | None:
    """Computes the missing units, each process its share; the first process merges and draws."""
    store, folder = ResultStore(out, task.identity), out / task.setting
    names = picture_files(task.fields, task.axes, task.animated)
    pictures = draw and not all((folder / name).is_file() for name in names)
    first = task.units[0]
    missing = [u for u in task.units if u not in store.done or (u == first and pictures)]
    processes.wait()  # all read what is done before one writes
    own, batch = processes.share(missing), 1
    if missing:
        batch = task.prepare()
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(own) * task.amount,
        desc=f"{task.description} {task.setting}",
        unit="window",
        disable=not (progress and processes.first),
    ) as bar:
        for start in range(0, len(own), batch):
            units = own[start : start + batch]
            for found in task.score(units, folder if pictures else None, bar.update):
                store.add(*found)
    processes.wait()
    evaluation = None
    if processes.first:
        table, timings = store.merge()
        rows = table.query("setting == @task.setting").reset_index(drop=True)
        timings = {unit: took for unit, took in timings.items() if unit.setting == task.setting}
        evaluation = task.finish(rows, timings, folder, draw)
    processes.wait()
    return evaluation
