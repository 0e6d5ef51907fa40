"""What a split of shards holds, in words and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from lola_ds.data.index import Index

__all__ = ["describe", "statistics_table"]


def describe(index: Index) -> Iterator[tuple[str, str]]:
    """Yields what an index says about its split, as pairs of a name and a text."""
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


def statistics_table(index: Index) -> str:
    """Returns the statistics of each channel as text, a row each."""
    table, transform = index.header["statistics"], index.header["transform"]
    names = [
        f"{transform[str(c)]}({name})" if str(c) in transform else name
        for c, name in enumerate(index.fields)
    ]
    rows = pd.DataFrame({key: table[key] for key in ("mean", "std", "min", "max")}, index=names)
    return rows.to_string(float_format="{:.4g}".format)


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
