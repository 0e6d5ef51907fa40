"""Virtual windows of long trajectories.

A window is (trajectory, start) with length L and stride s: frames start, start + s, …,
start + (L - 1) s. Every start that fits is a window; nothing is stored twice. Windows are numbered
trajectory by trajectory, in the order of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lola_ds.augment import WindowSpec, find_mirror
from lola_ds.data.format import STORED, decode_frames
from lola_ds.data.index import Index, open_index
from lola_ds.data.reader import FrameReader

__all__ = ["ShardDataset"]

RELEASED_BYTES = 1 << 24  # of a trajectory that are in memory twice, in the mapped shard, too


class ShardDataset:
    """The windows of one split, or of several with the same fields and grid.

        windows = ShardDataset("SHARDS/euler_multi_quadrants_periodicBC/train", length=5, stride=4)
        windows[0]["x"]                                     # (C, L, *S)

    Arguments:
        path: folder(s) written by `lola-ds shard` or `lola-ds encode`.
        length: L, number of frames.
        stride: s, steps between frames.
        max_trajectories: number of trajectories to keep of each folder, the first ones (all by
            default); or one number for each folder, None for all.
        verify_reads: hash every frame at every read, not only when this process reads it first.

    Attributes:
        kind: `fields` (physical units) or `latents`.
        shape: shape of a frame, (C, *S).
        fields: names of the channels.
        scalars: names of the scalars at the head of a label.
        axes: names of the spatial axes.
        spec: tensor character of the channels, as augmentation needs; None for latents.
        dtype: element type in the shards: float32, float16 or bfloat16.
        trajectories: number of trajectories.
        parts: number of windows from each folder.
        shard_sizes: bytes of each shard, folder by folder, (S,).
        frames: number of frames of each trajectory, (N,).

    Raises:
        FileNotFoundError, ShardError: see `open_index`.
        ValueError: no trajectory is long enough, folders differ, or an argument is not positive.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        length: int = 1,
        stride: int = 1,
        max_trajectories: int | Sequence[int | None] | None = None,
        verify_reads: bool = False,
    ) -> None:
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        if not paths:
            raise ValueError("no folder of shards given")
        limits = (
            [max_trajectories] * len(paths)
            if not isinstance(max_trajectories, Sequence)
            else list(max_trajectories)
        )
        if len(limits) != len(paths):
            raise ValueError(
                f"max_trajectories={limits}: give one for each of {len(paths)} folders"
            )
        if min(length, stride, *(limit for limit in limits if limit is not None)) < 1:
            raise ValueError(
                f"length={length}, stride={stride}, max_trajectories={max_trajectories}: "
                "must be >= 1"
            )
        self.length, self.stride = length, stride
        self.indexes = [open_index(folder) for folder in paths]
        _check_alike(self.indexes)
        self._readers = [FrameReader(index, verify_reads) for index in self.indexes]
        first = self.indexes[0]
        self.kind, self.dtype, self.shape = first.kind, first.dtype, first.shape
        self.fields, self.scalars, self.axes = first.fields, first.scalars, first.axes
        self.spec = _spec(first) if self.kind == "fields" else None

        kept = [slice(limit) for limit in limits]
        self._where = [
            (part, i)
            for part, (index, some) in enumerate(zip(self.indexes, kept))
            for i in range(*some.indices(len(index)))
        ]
        self.trajectories = len(self._where)
        pairs = list(zip(self.indexes, kept))
        self.frames = np.concatenate([index.frames[some] for index, some in pairs])
        self.labels = np.concatenate([index.labels[some] for index, some in pairs])
        self.shard_sizes = np.concatenate([index.shard_sizes for index in self.indexes])
        self._part = np.array([part for part, _ in self._where])
        self._first = np.concatenate([index.first[some] for index, some in pairs])
        span = (length - 1) * stride + 1
        counts = np.maximum(self.frames - span + 1, 0)
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        self._steps = np.arange(length) * stride
        self.parts = np.bincount(self._part, counts, minlength=len(paths)).astype(int).tolist()
        if not len(self):
            raise ValueError(
                f"{paths[0]}: trajectories have at most {max(self.frames, default=0)} frames, a "
                f"window of length={length} and stride={stride} spans {span}; lower one of them"
            )

    @cached_property
    def window_bytes(self) -> int:
        """Size of a window as it is stored."""
        return self.length * self.indexes[0].frame_bytes

    def __len__(self) -> int:
        """Number of windows."""
        return int(self._ends[-1]) if self.trajectories else 0

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Window `i`: {"x": (C, L, *S) float32, "label": (D,), "trajectory": int, "start": int}.

        Physical units, no augmentation.

        Raises:
            IndexError: there is no such window.
            ShardError: the bytes are not those that were written.
        """
        trajectory, start = self.locate(i)
        frames = np.empty((1, self.length, *self.shape), STORED[self.dtype])
        self.read_windows(np.array([i % len(self)]), frames)
        return {
            "x": torch.from_numpy(decode_frames(frames[0], self.dtype)).transpose(0, 1),
            "label": self.label(trajectory),
            "trajectory": trajectory,
            "start": start,
        }

    def locate(self, i: int) -> tuple[int, int]:
        """Window `i` -> (trajectory, start)."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        i %= len(self)
        trajectory = int(np.searchsorted(self._ends, i, side="right"))
        return trajectory, i - int(self._begins[trajectory])

    def window(self, trajectory: int, start: int) -> int:
        """(trajectory, start) -> the window's number."""
        begin, end = int(self._begins[trajectory]), int(self._ends[trajectory])
        if not 0 <= start < end - begin:
            raise IndexError(f"trajectory {trajectory} has no window at {start}")
        return begin + start

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Shard (of the first frame; numbered as `shard_sizes`) and trajectory of every window.

        Returns:
            Two (len(self),) arrays of int32.
        """
        counts = self._ends - self._begins
        trajectories = np.repeat(np.arange(self.trajectories, dtype=np.int32), counts)
        before = np.cumsum([0, *(len(index.shards) for index in self.indexes)])
        shards = [
            self.indexes[part].places(np.arange(row, row + count))[0] + before[part]
            for part, row, count in zip(self._part, self._first, counts)
        ]
        return np.concatenate(shards).astype(np.int32), trajectories

    def trajectories_of(self, windows: np.ndarray) -> np.ndarray:
        """The trajectory of each of `windows`, (n,)."""
        return self._ends.searchsorted(windows, side="right")

    def read_windows(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Reads windows as they are stored.

        Arguments:
            windows: window numbers, (n,).
            out: where to, (n, L, C, *S) of the stored type, C-contiguous.

        Raises:
            ShardError: the bytes are not those that were written.
        """
        trajectories = self.trajectories_of(windows)
        starts = self._first[trajectories] + windows - self._begins[trajectories]
        frames = starts[:, None] + self._steps
        target = out.reshape(-1, *self.shape)
        if len(self._readers) == 1:
            self._readers[0].read(frames.ravel(), target)
            return
        parts, rows = self._part[trajectories], np.arange(frames.size).reshape(frames.shape)
        for part in set(parts.tolist()):
            mine = parts == part
            self._readers[part].read(frames[mine].ravel(), target, rows[mine].ravel())

    def read_trajectory(self, i: int, frames: slice = slice(None)) -> Tensor:
        """Frames of trajectory `i` at once: (C, T, *S) float32."""
        chosen = np.arange(int(self.frames[i]))[frames]
        stored = np.empty((len(chosen), *self.shape), STORED[self.dtype])
        reader = self._readers[self._part[i]]
        at_once = max(RELEASED_BYTES // self.indexes[0].frame_bytes, 1)
        for k in range(0, len(chosen), at_once):
            reader.read(self._first[i] + chosen[k : k + at_once], stored[k : k + at_once])
            reader.release()
        return torch.from_numpy(decode_frames(stored, self.dtype)).transpose(0, 1)

    def label(self, i: int) -> Tensor:
        """Label of trajectory `i`, (D,) float32: scalars, then two boundary codes per axis."""
        return torch.from_numpy(self.labels[i].copy())

    def meta(self, i: int) -> dict[str, Any]:
        """Metadata of trajectory `i` (see `docs/shards.md`), and its `key`."""
        part, row = self._where[i]
        return self.indexes[part].meta(row)


def _spec(index: Index) -> WindowSpec:
    """What augmentation needs to know of a split's channels."""
    gravity = tuple(index.axes.index(axis) for axis in index.gravity)
    space = index.meta(0).get("space", {})
    mirror = find_mirror(index.fields, index.axes, gravity, space)
    return WindowSpec(index.ranks, len(index.axes), fixed=gravity, mirror=mirror)


def _check_alike(indexes: Sequence[Index]) -> None:
    first = indexes[0]
    for index in indexes[1:]:
        for name in ("kind", "dtype", "shape", "fields", "ranks", "axes", "scalars", "gravity"):
            if getattr(index, name) != getattr(first, name):
                raise ValueError(
                    f"{index.folder} has {name} {getattr(index, name)}, {first.folder} has "
                    f"{getattr(first, name)}; they cannot be read together"
                )
