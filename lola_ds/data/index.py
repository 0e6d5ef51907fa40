"""The index of a split: where every frame of every trajectory lies, and what it must hash to.

`index.npz` lies beside the shards and is all it takes to read any frame with one read. It holds

    header      uint8: JSON with schema, kind, dtype, shape, axes, fields, statistics, shard names,
                and the trajectories' metadata (entries shared by all of them stored once)
    segments    (M, 5) int64: trajectory, first frame, end frame, shard, offset of the first frame
    checksums   (F,) uint64: xxh3_64 of every stored frame, trajectory by trajectory
    shard_sizes (S,) int64: bytes

Symbols: N trajectories, F frames in all, M members, S shards, C channels, *S spatial axes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lola_ds.atomic_io import write_atomic
from lola_ds.data.format import INDEX, SCHEMA, STORED, ShardError, channel_names, dump_json

__all__ = ["Index", "open_index", "share_common"]


@dataclass(frozen=True)
class Index:
    """An index in memory.

    Attributes:
        folder: the folder that holds the shards.
        header: everything that is not a table (see the module's docstring).
        segments, checksums, shard_sizes: the tables.
    """

    folder: Path
    header: Mapping[str, Any]
    segments: np.ndarray
    checksums: np.ndarray
    shard_sizes: np.ndarray

    @property
    def kind(self) -> str:
        """`fields` (physical units) or `latents`."""
        return self.header["kind"]

    @property
    def dtype(self) -> str:
        """Element type in the shards: float32, float16 or bfloat16."""
        return self.header["dtype"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame, (C, *S)."""
        return tuple(self.header["shape"])

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the spatial axes."""
        return tuple(self.header["axes"])

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the channels."""
        return channel_names(self.header["fields"], self.axes)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Tensor rank of each field, in channel order."""
        return tuple(field["rank"] for field in self.header["fields"])

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the trajectories' scalars, in the order of labels."""
        return tuple(self.header["scalars"])

    @property
    def gravity(self) -> tuple[str, ...]:
        """Names of the axes along which gravity points."""
        return tuple(self.header["common"].get("gravity", ()))

    @property
    def shards(self) -> tuple[str, ...]:
        """File names of the shards."""
        return tuple(self.header["shards"])

    @cached_property
    def frame_bytes(self) -> int:
        """Size of one stored frame."""
        return int(np.prod(self.shape)) * STORED[self.dtype].itemsize

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.header["trajectories"])

    def meta(self, i: int) -> dict[str, Any]:
        """Metadata of trajectory `i`: what its `meta.json` holds, and its `key`."""
        return {**self.header["common"], **self.header["trajectories"][i]}

    @cached_property
    def labels(self) -> np.ndarray:
        """(N, D) float32: scalars in their file order, then two boundary codes per axis."""
        rows = []
        for i in range(len(self)):
            meta = self.meta(i)
            codes = [code for axis in self.axes for code in meta["boundary"][axis]]
            rows.append([*(meta["scalars"][name] for name in self.scalars), *codes])
        return np.array(rows, np.float32).reshape(len(self), -1)

    @cached_property
    def frames(self) -> np.ndarray:
        """(N,) int64: number of frames of each trajectory."""
        lengths = self.segments[:, 2] - self.segments[:, 1]
        return np.bincount(self.segments[:, 0], lengths, minlength=len(self)).astype(np.int64)

    @cached_property
    def first(self) -> np.ndarray:
        """(N,) int64: row of each trajectory's first frame in the tables of frames."""
        return np.cumsum(self.frames) - self.frames

    @cached_property
    def segment_first(self) -> np.ndarray:
        """(M,) int64: row of each segment's first frame in the tables of frames."""
        lengths = self.segments[:, 2] - self.segments[:, 1]
        return np.cumsum(lengths) - lengths

    def places(self, frames: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Where frames lie: their shards and their byte offsets in them.

        Arguments:
            frames: rows of the tables of frames, (n,), or one of them.

        Returns:
            Two (n,) arrays of int64, or two numbers.
        """
        segments = self.segment_first.searchsorted(frames, side="right") - 1
        rows = frames - self.segment_first[segments]
        return self.segments[segments, 3], self.segments[segments, 4] + rows * self.frame_bytes

    def save(self, path: Path) -> None:
        """Writes the index atomically; the same index gives the same bytes."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            header=np.frombuffer(dump_json(self.header), np.uint8),
            segments=self.segments,
            checksums=self.checksums,
            shard_sizes=self.shard_sizes,
        )
        write_atomic(path, buffer.getvalue())

    def check_shards(self) -> None:
        """Checks that every shard is there and has the size that was written.

        Raises:
            ShardError: names the shard that is missing or has another size.
        """
        for name, size in zip(self.shards, self.shard_sizes.tolist(), strict=True):
            path = self.folder / name
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise ShardError(f"{path}: shard missing, but {INDEX} lists it") from None
            if found != size:
                raise ShardError(f"{path}: {found} bytes, but {INDEX} says {size}: truncated?")


def open_index(folder: str | Path) -> Index:
    """Opens the index of a split, without reading any shard.

    Arguments:
        folder: `SHARDS/<dataset>/<split>`.

    Raises:
        FileNotFoundError: the folder or its index is missing.
        ShardError: the index is damaged or of an unknown schema; a shard is missing or truncated.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; `lola-ds shard` makes one")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no index here; `lola-ds shard` writes it when it is done")
    try:
        with np.load(io.BytesIO(path.read_bytes())) as tables:
            header = json.loads(tables["header"].tobytes())
            index = Index(
                folder,
                header,
                segments=tables["segments"],
                checksums=tables["checksums"],
                shard_sizes=tables["shard_sizes"],
            )
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ShardError(f"{path}: damaged index ({error})") from error
    if header.get("schema") != SCHEMA:
        raise ShardError(f"{path}: schema {header.get('schema')}, this version reads {SCHEMA}")
    index.check_shards()
    return index


def share_common(metas: Sequence[Mapping[str, Any]]) -> tuple[dict, list[dict]]:
    """Splits metadata in entries equal for all and each own; `{**common, **own}` undoes it."""
    first = metas[0] if metas else {}
    common = {
        key: value
        for key, value in first.items()
        if all(key in meta and meta[key] == value for meta in metas)
    }
    own = [{key: meta[key] for key in meta if key not in common} for meta in metas]
    return common, own
