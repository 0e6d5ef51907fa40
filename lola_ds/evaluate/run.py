"""Evaluations: an emulator (or an autoencoder alone) over the trajectories of a split.

Results lie in one folder, which further settings, trajectories and starts join; each file is
written whole or not at all:

    metrics.parquet, metrics.csv   every score (see `tables`, `scores`; `store` on resuming)
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
from lola_ds.evaluate.processes import ALONE, Processes
from lola_ds.evaluate.reconstructions import Reconstructions
from lola_ds.evaluate.resources import Resources
from lola_ds.evaluate.settings import Forecast
from lola_ds.evaluate.store import ResultStore
from lola_ds.evaluate.tables import Unit

__all__ = ["evaluate", "evaluate_autoencoder"]

DEFAULT, PLENTY = Forecast(), Resources()


class Work(Protocol):
    """An evaluation with one setting, cut into units."""

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
        """Prepares the first call of `score`; returns how many units to give it at a time."""
        ...

    def score(
        self, units: Sequence[Unit], draw: Path | None, progress: Callable[[int], object]
    ) -> Iterator[tuple[Unit, pd.DataFrame, dict[str, float]]]:
        """The rows of some units and what each took; pictures of the first of all go to `draw`."""
        ...

    def finish(
        self, table: pd.DataFrame, timings: dict[Unit, dict[str, float]], folder: Path, draw: bool
    ) -> Evaluation:
        """Concludes from the rows of all units with this setting."""
        ...


def evaluate(
    emulator: Emulator,
    dataset: ShardDataset,
    out: str | Path,
    forecast: Forecast = DEFAULT,
    trajectories: Sequence[int] | None = None,
    *,
    train: ShardDataset | None = None,
    resources: Resources = PLENTY,
    processes: Processes = ALONE,
    draw: bool = True,
    progress: bool = True,
) -> Evaluation | None:
    """Forecasts trajectories; scores them against the truth, baselines and the autoencoder.

    Forecasts that are in `out` already are not computed again; those of other settings,
    trajectories or starts are added. Summary and figures are of all that share the setting.

    Arguments:
        emulator: the emulator; states are its `stride` frames apart.
        dataset: physical trajectories.
        out: the folder of results, of one emulator and dataset.
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
    work = Forecasts(
        emulator, dataset, forecast, trajectories, train, Path(out), resources, processes, progress
    )
    return _run(work, Path(out), processes, draw, progress)


def evaluate_autoencoder(
    codec: Codec,
    dataset: ShardDataset,
    out: str | Path,
    steps: int = 8,
    start: int = 0,
    trajectories: Sequence[int] | None = None,
    *,
    resources: Resources = PLENTY,
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
    work = Reconstructions(codec, dataset, steps, start, trajectories, resources)
    return _run(work, Path(out), processes, draw, progress)


def _run(
    work: Work, out: Path, processes: Processes, draw: bool, progress: bool
) -> Evaluation | None:
    """Computes the units that are missing, each process its share; the first one concludes."""
    store, folder = ResultStore(out, work.identity), out / work.setting
    names = picture_files(work.fields, work.axes, work.animated)
    pictures = draw and not all((folder / name).is_file() for name in names)
    first = work.units[0]
    missing = [u for u in work.units if u not in store.done or (u == first and pictures)]
    processes.wait()  # nobody writes before everybody has looked
    mine, together = processes.share(missing), 1
    if missing:
        together = work.prepare()
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(mine) * work.amount,
        desc=f"{work.description} {work.setting}",
        unit="window",
        disable=not (progress and processes.first),
    ) as bar:
        for start in range(0, len(mine), together):
            units = mine[start : start + together]
            for found in work.score(units, folder if pictures else None, bar.update):
                store.add(*found)
    processes.wait()
    evaluation = None
    if processes.first:
        table, timings = store.merge()
        own = table.query("setting == @work.setting").reset_index(drop=True)
        timings = {unit: took for unit, took in timings.items() if unit.setting == work.setting}
        evaluation = work.finish(own, timings, folder, draw)
    processes.wait()
    return evaluation
