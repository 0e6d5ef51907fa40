"""Reading The Well's HDF5.

Layout: `<root>/<dataset>/data/<split>/*.hdf5` (also under `<root>/datasets/`). A file holds
trajectories of one simulation's parameters: fields in groups by tensor rank (`t0_fields`,
`t1_fields`, `t2_fields`), arrays (trajectory, time, *space, *tensor) stored without the axes on
which they do not vary; scalars; grids; masks of boundary conditions.

Channels are the fields of rank 0 in their order, then each vector's components, then each tensor's
(row-major). Symbols: T steps, C channels, *S spatial axes, N their number.

References:
    Ohana et al. (2024), The Well: a Large-Scale Collection of Diverse Physics Simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lola_ds.config import SPLITS

__all__ = [
    "BOUNDARY_CODES",
    "SUFFIXES",
    "WellFile",
    "WellTrajectory",
    "describe_grid",
    "list_files",
    "list_splits",
    "open_hdf5",
    "split_folder",
]

BOUNDARY_CODES = {"WALL": 0, "OPEN": 1, "PERIODIC": 2}
SUFFIXES = (".hdf5", ".h5")


def split_folder(root: str | Path, dataset: str, split: str) -> Path:
    """The folder of a split's files.

    Raises:
        FileNotFoundError: the root, the dataset or the split is missing; lists what there is.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; source= must be the root of The Well's data"
        )
    bases = [base for base in (root, root / "datasets") if (base / dataset / "data").is_dir()]
    if not bases:
        found = sorted({path.parent.name for path in root.glob("*/data")})
        found += sorted({path.parent.name for path in root.glob("datasets/*/data")})
        raise FileNotFoundError(
            f"{root}: no dataset '{dataset}' ({dataset}/data is missing); "
            f"found: {', '.join(found) or 'none'}"
        )
    folder = bases[0] / dataset / "data" / split
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; the dataset lacks the split '{split}'")
    return folder


def list_splits(root: str | Path, dataset: str) -> list[str]:
    """The splits that a dataset has, of train, valid, test.

    Raises:
        FileNotFoundError: the root or the dataset is missing.
    """
    data = split_folder(root, dataset, "").parent / "data"
    return [split for split in SPLITS if (data / split).is_dir()]


def list_files(
    root: str | Path, dataset: str, split: str, include_filters: Sequence[str] = ()
) -> list[Path]:
    """A split's HDF5 files, sorted by name.

    Arguments:
        root: the root of The Well's data.
        dataset: folder name of the dataset.
        split: train, valid or test.
        include_filters: keep files whose name contains one of these (all by default).

    Raises:
        FileNotFoundError: a folder is missing, or holds no such file.
    """
    folder = split_folder(root, dataset, split)
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if include_filters:
        paths = [path for path in paths if any(part in path.name for part in include_filters)]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no {' or '.join(SUFFIXES)} file"
            + (f" with {' or '.join(include_filters)} in its name" if include_filters else "")
        )
    return paths


def open_hdf5(path: Path, remedy: str) -> Any:
    """Opens an HDF5 file for reading (as `Any`: h5py types every item as a union of all kinds).

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or not HDF5; tells the `remedy`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path}: not a whole HDF5 file ({error}); {remedy}") from None


@dataclass(frozen=True)
class _Field:
    """A field's array and which of (trajectory, time, *space) it varies with."""

    name: str
    rank: int
    data: Any  # h5py.Dataset
    by_trajectory: bool
    by_time: bool
    by_axis: tuple[bool, ...]

    @classmethod
    def open(cls, name: str, rank: int, data: Any) -> _Field:
        by_trajectory, by_time = data.attrs["sample_varying"], data.attrs["time_varying"]
        by_axis = tuple(bool(varies) for varies in data.attrs["dim_varying"])
        return cls(name, rank, data, bool(by_trajectory), bool(by_time), by_axis)


class WellFile:
    """One HDF5 file of The Well, open for reading. Use as a context manager.

    Arguments:
        path: the file.

    Attributes:
        dataset: name of the dataset, as the file says.
        axes: names of the spatial axes.
        shape: grid, *S.
        trajectories, steps: their numbers.
        fields: (name, tensor rank) of each field, in channel order.
        channels: number of channels.

    Raises:
        OSError: the file is missing, truncated, or not HDF5.
        ValueError: it is not in The Well's layout, or an array has the wrong shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path, "copy or download it again")
        try:
            self._read_layout()
        except KeyError as error:
            self.close()
            raise ValueError(f"{self.path}: not in The Well's layout ({error.args[0]})") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WellFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_layout(self) -> None:
        file = self._file
        dimensions = file["dimensions"]
        self.dataset = str(file.attrs["dataset_name"])
        self.axes = tuple(_texts(dimensions.attrs["spatial_dims"]))
        self.shape = tuple(int(dimensions[axis].shape[-1]) for axis in self.axes)
        self.trajectories = int(file.attrs["n_trajectories"])
        self.steps = int(dimensions["time"].shape[-1])
        self._fields = [
            _Field.open(name, rank, file[f"t{rank}_fields"][name])
            for rank in range(3)
            if f"t{rank}_fields" in file
            for name in _texts(file[f"t{rank}_fields"].attrs["field_names"])
        ]
        self.fields = [(field.name, field.rank) for field in self._fields]
        self.channels = sum(len(self.axes) ** rank for _, rank in self.fields)
        if not self.fields:
            raise ValueError(f"{self.path}: holds no fields")
        for field in self._fields:
            stored, expected = field.data.shape, self._stored_shape(field)
            if stored != expected:
                raise ValueError(
                    f"{self.path}: field {field.name} has shape {stored}, but the file's "
                    f"dimensions and attributes make it {expected}"
                )

    def _stored_shape(self, field: _Field) -> tuple[int, ...]:
        """Shape of a field's array: only the axes on which it varies."""
        shape = [self.trajectories] if field.by_trajectory else []
        shape += [self.steps] if field.by_time else []
        shape += [size for size, varies in zip(self.shape, field.by_axis) if varies]
        return (*shape, *(len(self.axes),) * field.rank)

    def read(self, trajectory: int, frames: slice) -> np.ndarray:
        """Frames of a trajectory, constant axes expanded.

        Arguments:
            trajectory: its number in this file.
            frames: which steps; the slice's step must be 1.

        Returns:
            (T, C, *S) float32; bitwise what the file holds, if it holds float32.

        Raises:
            OSError: the file ends early or a chunk does not decode; names file, trajectory, field.
        """
        start, stop, _ = frames.indices(self.steps)
        out = np.empty((stop - start, self.channels, *self.shape), np.float32)
        channel = 0
        for field in self._fields:
            block = self._read_field(field, trajectory, start, stop)
            size = len(self.axes) ** field.rank
            block = block.reshape(*block.shape[: block.ndim - field.rank], size)
            out[:, channel : channel + size] = np.moveaxis(block, -1, 1)
            channel += size
        return out

    def _read_field(self, field: _Field, trajectory: int, start: int, stop: int) -> np.ndarray:
        """Steps [start, stop) of a field, (T or 1, *S or 1, *tensor): constant axes have size 1."""
        chosen: list[Any] = [trajectory] if field.by_trajectory else []
        if field.by_time:
            chosen.append(slice(start, stop))
        try:
            values = field.data[tuple(chosen)]
        except OSError as error:
            raise OSError(
                f"{self.path}: trajectory {trajectory}, field {field.name}, steps {start} to "
                f"{stop - 1} cannot be read ({error}); copy or download the file again"
            ) from None
        if not field.by_time:
            values = values[None]
        for axis, varies in enumerate(field.by_axis):
            if not varies:
                values = np.expand_dims(values, 1 + axis)
        return values

    def scalars(self, trajectory: int) -> dict[str, float]:
        """Scalars of a trajectory that are constant in time, in the file's order."""
        group = self._file["scalars"]
        scalars = {}
        for name in _texts(group.attrs["field_names"]):
            if not group[name].attrs["time_varying"]:
                values = group[name][()]
                varies = group[name].attrs["sample_varying"]
                scalars[name] = float(values[trajectory] if varies else values)
        return scalars

    def scalars_in_time(self, trajectory: int) -> dict[str, list[float]]:
        """Scalars of a trajectory that vary in time, one value a step, in the file's order."""
        group = self._file["scalars"]
        series = {}
        for name in _texts(group.attrs["field_names"]):
            if group[name].attrs["time_varying"]:
                values = group[name][()]
                values = values[trajectory] if group[name].attrs["sample_varying"] else values
                series[name] = np.asarray(values, np.float64).tolist()
        return series

    def boundary(self, trajectory: int) -> dict[str, list[int]]:
        """Boundary codes of each axis, [low side, high side]; a side that no mask marks is open.

        A mask over several axes counts for a side if any part of the side is open or periodic, or
        if all of it is wall.
        """
        codes = {axis: [BOUNDARY_CODES["OPEN"]] * 2 for axis in self.axes}
        for condition in self._file["boundary_conditions"].values():
            kind = str(condition.attrs["bc_type"]).upper()
            if kind not in BOUNDARY_CODES:
                raise ValueError(
                    f"{self.path}: boundary condition of type '{kind}'; known: "
                    f"{', '.join(BOUNDARY_CODES)}"
                )
            mask = condition["mask"][()]
            if condition.attrs["sample_varying"]:
                mask = mask[trajectory]
            if condition.attrs["time_varying"]:
                mask = mask[0]
            holds = np.all if kind == "WALL" else np.any
            for position, axis in enumerate(_texts(condition.attrs["associated_dims"])):
                sides = np.moveaxis(mask, position, 0)
                for side in (0, -1):
                    if holds(sides[side]):
                        codes[axis][side] = BOUNDARY_CODES[kind]
        return codes

    def time(self, trajectory: int) -> dict[str, Any]:
        """Times of the steps, in the dataset's unit; see `describe_grid`."""
        return describe_grid(self._coordinates("time", trajectory))

    def space(self, trajectory: int) -> dict[str, dict[str, Any]]:
        """Coordinates along each axis, in the dataset's unit; see `describe_grid`."""
        return {axis: describe_grid(self._coordinates(axis, trajectory)) for axis in self.axes}

    def _coordinates(self, name: str, trajectory: int) -> np.ndarray:
        dataset = self._file["dimensions"][name]
        return dataset[trajectory] if dataset.attrs["sample_varying"] else dataset[()]

    def meta(self, trajectory: int, split: str) -> dict[str, Any]:
        """A trajectory's metadata, as its shard holds it."""
        series = self.scalars_in_time(trajectory)
        return {
            "dataset": self.dataset,
            "split": split,
            "source": self.path.name,
            "trajectory": trajectory,
            "scalars": self.scalars(trajectory),
            "boundary": self.boundary(trajectory),
            "time": self.time(trajectory),
            "space": self.space(trajectory),
            "fields": [{"name": name, "rank": rank} for name, rank in self.fields],
            **({"scalars_in_time": series} if series else {}),
        }


class WellTrajectory:
    """A trajectory that is read where it is sliced, for `ShardWriter.add`."""

    def __init__(self, file: Any, trajectory: int) -> None:
        self.shape = (file.steps, file.channels, *file.shape)
        self._file, self._trajectory = file, trajectory

    def __getitem__(self, frames: slice) -> np.ndarray:
        return self._file.read(self._trajectory, frames)


def describe_grid(values: np.ndarray) -> dict[str, Any]:
    """A grid as {"start", "step", "size"} where it is uniform to float32, else {"values"}."""
    values = np.asarray(values, np.float64)
    size = len(values)
    step = (values[-1] - values[0]) / max(size - 1, 1)
    uniform = values[0] + step * np.arange(size)
    scale = max(np.abs(values).max(), np.abs(step))
    if np.abs(values - uniform).max() <= 1e-6 * scale:
        return {"start": float(values[0]), "step": float(step), "size": size}
    return {"values": values.tolist()}


def _texts(values: Any) -> list[str]:
    """An attribute of names as strings, whether stored as text or bytes."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(values).tolist()]
