"""Small HDF5 files in The Well's layout, written with h5py alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZES = {"x": 8, "y": 6, "z": 4}


def write_well(
    path: Path,
    *,
    dataset: str = "toy",
    trajectories: int = 2,
    steps: int = 7,
    dims: int = 2,
    sizes: dict[str, int] = SIZES,
    seed: int = 0,
    extended: bool = True,
    compression: str | None = None,
) -> Path:
    """Writes a file with every kind of entry.

    Fields: scalars `density` and (if `extended`) `floor`, which is stored without its last axis;
    vector `momentum`; and (if `extended`) tensor `stress`. Scalars `gamma` (one per file) and, if
    `extended`, `drag` (one per trajectory). Boundaries: x periodic; y wall below, open above; z
    unmarked.
    """
    rng = np.random.default_rng(seed)
    axes = list(sizes)[:dims]
    shape = [sizes[axis] for axis in axes]
    path.parent.mkdir(parents=True, exist_ok=True)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    with h5py.File(path, "w") as file:
        file.attrs.update(
            dataset_name=dataset,
            grid_type="cartesian",
            n_spatial_dims=dims,
            n_trajectories=trajectories,
            simulation_parameters=["gamma"],
            gamma=1.4 + seed / 10,
        )
        _write_dimensions(file, axes, sizes, steps)
        _write_scalars(file, trajectories, 1.4 + seed / 10, extended)
        _write_boundaries(file, axes, sizes)
        fields: dict[int, dict[str, Any]] = {
            0: {"density": (draw(trajectories, steps, *shape), [True] * dims)},
            1: {"momentum": (draw(trajectories, steps, *shape, dims), [True] * dims)},
            2: {},
        }
        if extended:
            thin = [True] * (dims - 1) + [False]
            fields[0]["floor"] = (draw(trajectories, steps, *shape[:-1]), thin)
            fields[2]["stress"] = (draw(trajectories, steps, *shape, dims, dims), [True] * dims)
        for rank, entries in fields.items():
            group = file.create_group(f"t{rank}_fields")
            group.attrs["field_names"] = np.array(list(entries), dtype=h5py.string_dtype())
            for name, (values, varying) in entries.items():
                stored = group.create_dataset(name, data=values, compression=compression)
                stored.attrs.update(dim_varying=varying, sample_varying=True, time_varying=True)
                if rank == 2:
                    stored.attrs.update(symmetric=False, antisymmetric=False)
    return path


def _write_dimensions(file: h5py.File, axes: list[str], sizes: dict[str, int], steps: int) -> None:
    group = file.create_group("dimensions")
    group.attrs["spatial_dims"] = axes
    grids = {axis: (np.arange(sizes[axis]) + 0.5) / sizes[axis] for axis in axes}
    grids["y"] = np.cos(np.pi * grids["y"])  # not uniform
    for name, values in {"time": np.arange(steps) * 0.015, **grids}.items():
        grid = group.create_dataset(name, data=values.astype(np.float32))
        grid.attrs.update(sample_varying=False, time_varying=False)


def _write_scalars(file: h5py.File, trajectories: int, gamma: float, extended: bool) -> None:
    group = file.create_group("scalars")
    values: dict[str, Any] = {"gamma": np.float64(gamma)}
    if extended:
        values["drag"] = np.linspace(0.5, 1.5, trajectories)
    group.attrs["field_names"] = list(values)
    for name, value in values.items():
        scalar = group.create_dataset(name, data=value)
        scalar.attrs.update(sample_varying=np.ndim(value) > 0, time_varying=False)


def _write_boundaries(file: h5py.File, axes: list[str], sizes: dict[str, int]) -> None:
    group = file.create_group("boundary_conditions")
    for name, kind, axis, sides in (
        ("x_periodic", "PERIODIC", "x", (0, -1)),
        ("y_open", "OPEN", "y", (-1,)),
        ("y_wall", "WALL", "y", (0,)),
    ):
        condition = group.create_group(name)
        condition.attrs.update(
            bc_type=kind,
            associated_dims=[axis],
            associated_fields=[],
            sample_varying=False,
            time_varying=False,
        )
        mask = np.zeros(sizes[axis], bool)
        mask[list(sides)] = True
        condition.create_dataset("mask", data=mask)


def write_split(root: Path, dataset: str = "toy", split: str = "train", files: int = 2, **options):
    """Writes `files` files of a split; returns their paths."""
    folder = root / dataset / "data" / split
    return [
        write_well(folder / f"{dataset}_gamma_1.{i}.hdf5", dataset=dataset, seed=i, **options)
        for i in range(files)
    ]
