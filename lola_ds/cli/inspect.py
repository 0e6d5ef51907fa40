"""`lola-ds inspect`: what a split of shards holds: a table, and a picture of a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lola_ds.cli.common import make_parser, parse_arguments, split_paths
from lola_ds.config import parse_overrides, setting

if TYPE_CHECKING:
    from lola_ds.data import ShardDataset
    from lola_ds.data.index import Index

HELP = """
Show what a split of shards holds: a table, and a picture of one trajectory.

  lola-ds inspect SHARDS/<dataset>/<split> [trajectory=0] [out=picture.png]

The table comes from the index alone: trajectories and frames, grid, times, scalars, boundaries, and
the statistics of each field that were gathered while writing. With out=FILE.png, one trajectory's
fields are drawn at a few times (a cut through the middle in 3-d).

  trajectory=0   which one
  out=FILE       the picture; none by default
  times=5        how many times, spread evenly from the first frame to the last
  fields=…       names of the fields to draw, separated by commas; the first eight by default

Examples:
  lola-ds inspect shards/euler_multi_quadrants_periodicBC/train
  lola-ds inspect shards/rayleigh_benard/valid trajectory=3 out=picture.png times=4
"""

MOST_FIELDS = 8
"""How many fields are drawn unless some are named; latents have many."""


@dataclass
class Options:
    """The keys of the command."""

    trajectory: int = 0
    out: str | None = None
    times: int = setting(5, least=1)
    fields: list[str] | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    _, words = parse_arguments(make_parser("inspect", HELP), argv)
    folders, overrides = split_paths(words)
    options = parse_overrides(Options, overrides)
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} folders given, one is needed: SHARDS/<dataset>/<split>")

    from lola_ds.data import ShardDataset

    dataset = ShardDataset(folders[0])
    if not 0 <= options.trajectory < dataset.trajectories:
        raise ValueError(
            f"trajectory={options.trajectory}: {folders[0]} has the trajectories 0 to "
            f"{dataset.trajectories - 1}"
        )
    index = dataset.indexes[0]
    print("\n".join(f"{name:<13} {text}" for name, text in describe(index)))
    print(_statistics(index))
    if options.out:
        chosen = _choose_fields(dataset.fields, options.fields)
        draw(dataset, options.trajectory, options.times, chosen, Path(options.out))
        print(f"wrote {options.out}")


def describe(index: Index) -> Iterator[tuple[str, str]]:
    """What an index says about its split, as (name, text)."""
    count, frames = len(index), index.frames
    metas = [index.meta(i) for i in range(count)]
    grid = " × ".join(f"{axis} {size}" for axis, size in zip(index.axes, index.shape[1:]))
    size = int(index.shard_sizes.sum())
    yield "folder", str(index.folder)
    yield "holds", f"{index.kind} in {index.dtype}, {len(index.fields)} channels"
    yield "trajectories", f"{count}, of {_range(frames.tolist())} frames, {frames.sum()} in all"
    yield (
        "size",
        f"{_bytes(size)} in {len(index.shards)} shards, {_bytes(index.frame_bytes)} a frame",
    )
    yield "grid", f"{grid}; {'; '.join(_extents(metas[0], index))}"
    steps = {_grid_text(meta.get("time", {})) for meta in metas}
    yield "time", " or ".join(sorted(steps))
    for name in index.scalars:
        yield name, _range([meta["scalars"][name] for meta in metas])
    for axis in index.axes:
        kinds = {tuple(meta["boundary"][axis]) for meta in metas}
        yield f"{axis} boundary", " or ".join(sorted(map(_sides, kinds)))
    if index.gravity:
        yield "gravity", f"along {', '.join(index.gravity)}"
    sources = {meta["source"] for meta in metas if "source" in meta}
    yield "source", f"{len(sources)} files, {min(sources)} …" if sources else "unknown"
    if index.header["nonfinite"]:
        yield "warning", f"{len(index.header['nonfinite'])} frames hold NaN or infinity"


def draw(
    dataset: ShardDataset, trajectory: int, times: int, channels: Sequence[int], out: Path
) -> None:
    """Draws a trajectory's channels at some times, spread evenly over its frames."""
    import numpy as np
    import torch

    from lola_ds.evaluate.plots.states import axis_edges, plot_trajectory

    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} to")
    if out.suffix != ".png":
        raise ValueError(f"out={out}: the picture is a PNG; give a name that ends in .png")
    frames = np.unique(np.linspace(0, dataset.frames[trajectory] - 1, times).round().astype(int))
    states = [dataset.read_trajectory(trajectory, slice(f, f + 1))[channels] for f in frames]
    meta = dataset.meta(trajectory)
    # Latents carry the grid of the fields they come from.
    space: Mapping[str, Any] = meta.get("space", {}) if dataset.kind == "fields" else {}
    scalars = ", ".join(f"{name} {value:.4g}" for name, value in meta["scalars"].items())
    plot_trajectory(
        torch.cat(states, dim=1).numpy(),
        [dataset.fields[channel] for channel in channels],
        [_time_text(meta.get("time", {}), int(f)) for f in frames],
        {
            axis: axis_edges(space.get(axis, {}), size)
            for axis, size in zip(dataset.axes, dataset.shape[1:])
        },
        out,
        f"{meta['key']}\n{scalars}",
    )


def _statistics(index: Index) -> str:
    """The statistics of each channel, a row each."""
    import pandas as pd

    table, transform = index.header["statistics"], index.header["transform"]
    names = [
        f"{transform[str(c)]}({name})" if str(c) in transform else name
        for c, name in enumerate(index.fields)
    ]
    rows = pd.DataFrame({key: table[key] for key in ("mean", "std", "min", "max")}, index=names)
    return rows.to_string(float_format="{:.4g}".format)


def _choose_fields(fields: Sequence[str], names: Sequence[str] | None) -> list[int]:
    """The channels of the fields with these names; the first ones by default."""
    if names is None:
        return list(range(len(fields)))[:MOST_FIELDS]
    for name in names:
        if name not in fields:
            raise ValueError(f"fields={name}: not among {', '.join(fields)}")
    return [fields.index(name) for name in names]


def _extents(meta: Mapping[str, Any], index: Index) -> Iterator[str]:
    for axis in index.axes:
        yield f"{axis} {_grid_text(meta.get('space', {}).get(axis, {}))}"


def _grid_text(grid: Mapping[str, Any]) -> str:
    """A grid's range and spacing in words."""
    if "values" in grid:
        return f"{grid['values'][0]:.4g} to {grid['values'][-1]:.4g}, uneven"
    if "start" not in grid:
        return "not recorded"
    if "size" not in grid:
        return f"from {grid['start']:.4g} by {grid['step']:.4g}"
    last = grid["start"] + grid["step"] * (grid["size"] - 1)
    return f"{grid['start']:.4g} to {last:.4g} by {grid['step']:.4g}"


def _time_text(grid: Mapping[str, Any], frame: int) -> str:
    if "values" in grid:
        return f"t = {grid['values'][frame]:.3g}"
    if "start" in grid:
        return f"t = {grid['start'] + grid['step'] * frame:.3g}"
    return f"frame {frame}"


def _sides(codes: Sequence[int]) -> str:
    """Boundary codes of an axis in words: `wall`, or `wall to open` where the sides differ."""
    names = [("wall", "open", "periodic")[int(code)] for code in codes]
    return names[0] if names[0] == names[1] else " to ".join(names)


def _range(values: Sequence[float]) -> str:
    """Up to six different values, else how many there are and their range."""
    different = sorted(set(values))
    if len(different) <= 6:
        return ", ".join(f"{value:.6g}" for value in different)
    return f"{different[0]:.6g} to {different[-1]:.6g} ({len(different)} values)"


def _bytes(size: float) -> str:
    """A size in bytes, with a decimal prefix."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
