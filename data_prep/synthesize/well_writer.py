"""A writer of The Well's HDF5 files.

A file holds trajectories that share parameters, boundary conditions, grid and times (Ohana et al.
2024). Its layout:

    /                    dataset_name, grid_type, n_spatial_dims, n_trajectories,
                         simulation_parameters and each parameter by its name
    /dimensions          spatial_dims; time (T,), x (X,), y (Y,), ...
    /scalars             field_names; one number per parameter
    /boundary_conditions one group per axis: bc_type, associated_dims, associated_fields, and a
                         mask that is true at the two ends of the axis
    /t0_fields           field_names; scalar fields (N, T, X, Y, ...)
    /t1_fields           vector fields (N, T, X, Y, ..., D)
    /t2_fields           tensor fields, none here

References:
    R. Ohana et al., The Well: a large-scale collection of diverse physics simulations for machine
        learning, NeurIPS 2024; https://polymathic-ai.org/the_well/data_format
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from lola_ds.atomic_io import move_into_place

__all__ = ["BOUNDARIES", "WellSpec", "WellWriter", "read_provenance"]

#: The kinds of boundary that The Well knows.
BOUNDARIES = ("WALL", "OPEN", "PERIODIC")


@dataclass(frozen=True)
class WellSpec:
    """The content of a file except for the values of the fields.

    Arguments:
        dataset: The dataset's name.
        trajectories: The number of trajectories N.
        times: The times of the T states.
        grid: The coordinates of the cells' centres along each dimension, by name and in order.
        boundaries: The kind of boundary of each dimension: one of `BOUNDARIES`, possibly with a
            suffix such as `WALL_DIRICHLET`.
        scalar_fields: The names of the scalar fields.
        vector_fields: The names of the vector fields.
        parameters: The parameters' values, by name; each is a scalar of the dataset.
        provenance: How the file was made; kept as the root attribute `provenance`.
    """

    dataset: str
    trajectories: int
    times: np.ndarray
    grid: Mapping[str, np.ndarray]
    boundaries: Mapping[str, str]
    scalar_fields: Sequence[str]
    vector_fields: Sequence[str]
    parameters: Mapping[str, float]
    provenance: str

    def __post_init__(self) -> None:
        if list(self.boundaries) != list(self.grid):
            raise ValueError(f"boundaries {[*self.boundaries]} are not those of {[*self.grid]}")
        for dim, kind in self.boundaries.items():
            if _bc_type(kind) not in BOUNDARIES:
                raise ValueError(f"boundary '{kind}' of {dim} is none of {', '.join(BOUNDARIES)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (N, T, X, Y, ...) of a scalar field."""
        return (self.trajectories, len(self.times), *map(len, self.grid.values()))


class WellWriter:
    """Writes one file, frame by frame; the file gets its final name once it is complete.

    Frames are written to `<path>.partial`. On leaving the context, that file is renamed if every
    frame was written, and removed after an error, so a file with the final name is always complete.

    Example:
        with WellWriter(path, spec) as writer:
            writer.write(0, 0, {"density": rho, "momentum": m})

    Raises:
        OSError: Another process is writing the same file.
        ValueError: On leaving, if frames are missing.
    """

    def __init__(self, path: Path, spec: WellSpec) -> None:
        self.path, self.spec = Path(path), spec
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._written = np.zeros(spec.shape[:2], dtype=bool)

    def __enter__(self) -> WellWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self.partial, "w")
        self._fields = _create(self._file, self.spec)
        return self

    def write(self, trajectory: int, step: int, fields: Mapping[str, np.ndarray]) -> None:
        """Writes one state: scalar fields (X, Y, ...) and vector fields (X, Y, ..., D)."""
        if fields.keys() != self._fields.keys():
            raise ValueError(f"fields {[*fields]} are not those of the file: {[*self._fields]}")
        for name, value in fields.items():
            self._fields[name][trajectory, step] = value
        self._written[trajectory, step] = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            if kind is not None:
                self.partial.unlink()
        if kind is not None:
            return
        if not self._written.all():
            self.partial.unlink()
            done, total = self._written.sum(), self._written.size
            raise ValueError(f"{self.path.name}: only {done} of {total} states were written")
        move_into_place(self.partial, self.path)


def read_provenance(path: Path) -> str | None:
    """Reads how a file was made, as stored by its writer, or None.

    Raises:
        OSError: The file is not HDF5 or is truncated.
    """
    with h5py.File(path, "r") as file:
        return file.attrs.get("provenance")


def _create(file: h5py.File, spec: WellSpec) -> dict[str, h5py.Dataset]:
    """Writes everything except for the values of fields; returns the datasets of fields by name."""
    file.attrs["dataset_name"] = spec.dataset
    file.attrs["grid_type"] = "cartesian"
    file.attrs["n_spatial_dims"] = len(spec.grid)
    file.attrs["n_trajectories"] = spec.trajectories
    file.attrs["simulation_parameters"] = _strings(spec.parameters)
    for name, value in spec.parameters.items():
        file.attrs[name] = value
    file.attrs["provenance"] = spec.provenance

    _create_dimensions(file.create_group("dimensions"), spec)
    _create_boundaries(file.create_group("boundary_conditions"), spec)
    _create_scalars(file.create_group("scalars"), spec)
    return {
        **_create_fields(file.create_group("t0_fields"), spec, spec.scalar_fields, 0),
        **_create_fields(file.create_group("t1_fields"), spec, spec.vector_fields, 1),
        **_create_fields(file.create_group("t2_fields"), spec, (), 2),
    }


def _create_dimensions(group: h5py.Group, spec: WellSpec) -> None:
    group.attrs["spatial_dims"] = _strings(spec.grid)
    for name, values in {"time": spec.times, **spec.grid}.items():
        dataset = group.create_dataset(name, data=np.asarray(values, dtype=np.float32))
        dataset.attrs["sample_varying"] = False
        dataset.attrs["time_varying"] = name == "time"


def _create_boundaries(group: h5py.Group, spec: WellSpec) -> None:
    for dim, kind in spec.boundaries.items():
        boundary = group.create_group(f"{dim}_{kind.lower()}")
        boundary.attrs["associated_dims"] = _strings([dim])
        boundary.attrs["associated_fields"] = _strings([])
        boundary.attrs["bc_type"] = _bc_type(kind)
        boundary.attrs["sample_varying"] = False
        boundary.attrs["time_varying"] = False
        mask = np.zeros(len(spec.grid[dim]), dtype=bool)
        mask[[0, -1]] = True
        boundary.create_dataset("mask", data=mask)


def _create_scalars(group: h5py.Group, spec: WellSpec) -> None:
    group.attrs["field_names"] = _strings(spec.parameters)
    for name, value in spec.parameters.items():
        dataset = group.create_dataset(name, data=np.float32(value))
        dataset.attrs["sample_varying"] = False
        dataset.attrs["time_varying"] = False


def _create_fields(
    group: h5py.Group, spec: WellSpec, names: Sequence[str], rank: int
) -> dict[str, h5py.Dataset]:
    group.attrs["field_names"] = _strings(names)
    components = (len(spec.grid),) * rank
    fields = {}
    for name in names:
        fields[name] = group.create_dataset(name, shape=spec.shape + components, dtype=np.float32)
        fields[name].attrs["dim_varying"] = np.ones(len(spec.grid), dtype=bool)
        fields[name].attrs["sample_varying"] = True
        fields[name].attrs["time_varying"] = True
    return fields


def _bc_type(kind: str) -> str:
    """The type of a kind of boundary: WALL of WALL_DIRICHLET."""
    return kind.partition("_")[0]


def _strings(names: Sequence[str] | Mapping[str, object]) -> np.ndarray:
    return np.array([*names], dtype=h5py.string_dtype())
