"""lola's latent caches -> shards of latents.

A cache holds, for each file of the dataset it was encoded from, `<cache>/<dataset>/<split>/<file>`,
an HDF5 file with

    state   (N, T, C, *S) float32    latents of N trajectories
    label   (N, D)                   scalars of the simulation, then two boundary codes per axis

Cached passes under augmentation are further trajectories. Times and grids are not in a cache: steps
are counted from 0, and there is no grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.well import SUFFIXES, open_hdf5
from data_prep.well_to_shards import SHARD_BYTES, shard_files
from lola_ds.config import SPLITS
from lola_ds.data.index import Index

__all__ = ["LatentFile", "list_caches", "shard_latents"]

AXES = "xyz"
CODES = (0, 1, 2)  # of boundary conditions: wall, open, periodic


class LatentFile:
    """One HDF5 file of a latent cache, open for reading. Use as a context manager.

    Arguments:
        path: the file, `<cache>/<dataset>/<split>/<file>`.
        scalars: names of the scalars at the head of the labels (`scalar_0`, … by default).

    Attributes:
        axes, shape: names and sizes of the latents' spatial axes.
        trajectories, steps, channels: their numbers.
        fields: (name, tensor rank) of each channel: `latent_0`, …, all scalars.

    Raises:
        OSError: the file is missing, truncated, or not HDF5.
        ValueError: it is not in the layout of a latent cache.
    """

    def __init__(self, path: str | Path, scalars: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path, "copy it or encode again")
        try:
            self._read_layout(scalars)
        except BaseException:
            self._file.close()
            raise

    def _read_layout(self, scalars: Sequence[str]) -> None:
        if "state" not in self._file or "label" not in self._file:
            raise ValueError(f"{self.path}: not a latent cache (no datasets 'state' and 'label')")
        self._state, self._label = self._file["state"], self._file["label"][()]
        shape, dims = self._state.shape, self._state.ndim - 3
        if dims not in (1, 2, 3) or self._label.shape[:1] != shape[:1] or self._label.ndim != 2:
            raise ValueError(
                f"{self.path}: state {shape} and label {self._label.shape}, expected "
                "(N, T, C, *S) and (N, D)"
            )
        self.trajectories, self.steps, self.channels = shape[:3]
        self.shape, self.axes = tuple(shape[3:]), tuple(AXES[:dims])
        self.fields = [(f"latent_{c}", 0) for c in range(self.channels)]
        count = self._label.shape[1] - 2 * dims
        self._scalars = tuple(scalars) or tuple(f"scalar_{i}" for i in range(count))
        if (
            count < 0
            or len(self._scalars) != count
            or not np.isin(self._label[:, count:], CODES).all()
        ):
            raise ValueError(
                f"{self.path}: labels of {self._label.shape[1]} numbers do not hold the scalars "
                f"{', '.join(self._scalars) or '(none)'} and {2 * dims} boundary codes (0, 1 or 2)"
            )

    def __enter__(self) -> LatentFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, trajectory: int, frames: slice) -> np.ndarray:
        """Frames of a trajectory, (T, C, *S) float32.

        Raises:
            OSError: a chunk does not decode; names file and trajectory.
        """
        try:
            return self._state[trajectory, frames]
        except OSError as error:
            raise OSError(
                f"{self.path}: trajectory {trajectory} cannot be read ({error}); encode it again"
            ) from None

    def meta(self, trajectory: int, split: str) -> dict[str, Any]:
        """A trajectory's metadata, as its shard holds it."""
        label, count = self._label[trajectory], len(self._scalars)
        codes = label[count:].astype(int).reshape(-1, 2).tolist()
        return {
            "dataset": self.path.parent.parent.name,
            "split": split,
            "source": self.path.name,
            "trajectory": trajectory,
            "scalars": dict(zip(self._scalars, label[:count].astype(float).tolist())),
            "boundary": dict(zip(self.axes, codes)),
            "time": {"start": 0.0, "step": 1.0, "size": self.steps},
            "space": {},
            "fields": [{"name": name, "rank": rank} for name, rank in self.fields],
        }


def list_caches(cache: str | Path, datasets: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(dataset, split) of every split that a cache holds, or that `datasets` of it hold.

    Raises:
        FileNotFoundError: there is no such folder, dataset or split.
    """
    root = Path(cache)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; source= must be a latent cache")
    known = sorted({path.parent.name for split in SPLITS for path in root.glob(f"*/{split}")})
    missing = [name for name in datasets if name not in known]
    if missing or not known:
        raise FileNotFoundError(
            f"{root}: holds no latents of {', '.join(missing) or 'any dataset'} "
            f"(<dataset>/<split>/*.h5); found: {', '.join(known) or 'none'}"
        )
    return [
        (name, split)
        for name in datasets or known
        for split in SPLITS
        if (root / name / split).is_dir()
    ]


def shard_latents(
    cache: str | Path,
    out: str | Path,
    dataset: str,
    split: str,
    *,
    workers: int | None = None,
    dtype: str = "float32",
    allow_nan: bool = False,
    shard_bytes: int = SHARD_BYTES,
    scalars: Sequence[str] = (),
    task: tuple[int, int] = (0, 1),
) -> Index | None:
    """Writes `out/<dataset>/<split>` from `cache/<dataset>/<split>`; see `shard_split`.

    Arguments:
        scalars: names of the scalars at the head of the labels.

    Raises:
        FileNotFoundError, OSError, ValueError, FileExistsError: see `LatentFile`, `shard_split`.
    """
    folder = Path(cache) / dataset / split
    paths = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder}: no {' or '.join(SUFFIXES)} file")
    return shard_files(
        paths,
        Path(out) / dataset / split,
        partial(LatentFile, scalars=tuple(scalars)),
        kind="latents",
        workers=workers,
        dtype=dtype,
        allow_nan=allow_nan,
        shard_bytes=shard_bytes,
        task=task,
    )
