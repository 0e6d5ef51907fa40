"""Virtual windows of long trajectories.

A window is (trajectory, start) with length L and stride s: frames start, start + s, …,
start + (L - 1) s. Every start that fits is a window; nothing is stored twice. Windows are numbered
trajectory by trajectory, in the order of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augment import WindowSpec
from .index import Index, open_index
from .reader import FrameReader


class ShardDataset:
    """The windows of one split, or of several with the same fields and grid.

        windows = ShardDataset("SHARDS/euler_multi_quadrants_periodicBC/train", length=5, stride=4)
        windows[0]["x"]                                     # (C, L, *S)

    Arguments:
        path: folder(s) written by `lola-ds shard` or `lola-ds encode`.
        length: L, number of frames.
        stride: s, steps between frames.
        restrict: keep the first trajectories only (all by default).

    Attributes:
        kind: `fields` (physical units) or `latents`.
        shape: shape of a frame, (C, *S).
        fields: names of the channels.
        scalars: names of the scalars at the head of a label.
        axes: names of the spatial axes.
        spec: tensor character of the channels, as augmentation needs; None for latents.
        trajectories: number of trajectories.
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
        restrict: int | None = None,
    ) -> None:
        if min(length, stride, 1 if restrict is None else restrict) < 1:
            raise ValueError(f"length={length}, stride={stride}, restrict={restrict}: must be >= 1")
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        if not paths:
            raise ValueError("no folder of shards given")
        self.length, self.stride = length, stride
        self.indexes = [open_index(folder) for folder in paths]
        _check_alike(self.indexes)
        self._readers = [FrameReader(index) for index in self.indexes]
        first = self.indexes[0]
        self.kind, self.shape, self.fields = first.kind, first.shape, first.fields
        self.scalars, self.axes = first.scalars, first.axes
        gravity = tuple(first.axes.index(axis) for axis in first.gravity)
        spec = WindowSpec(first.ranks, len(first.axes), fixed=gravity)
        self.spec = spec if self.kind == "fields" else None

        split = [(part, i) for part, index in enumerate(self.indexes) for i in range(len(index))]
        self._where = split[:restrict]
        self.trajectories = len(self._where)
        self.frames = np.concatenate([index.frames for index in self.indexes])[:restrict]
        self.labels = np.concatenate([index.labels for index in self.indexes])[:restrict]
        span = (length - 1) * stride + 1
        self._ends = np.cumsum(np.maximum(self.frames - span + 1, 0))
        if not len(self):
            raise ValueError(
                f"{paths[0]}: trajectories have at most {max(self.frames, default=0)} frames, a "
                f"window of length={length} and stride={stride} spans {span}; lower one of them"
            )

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
        frames = np.empty((self.length, *self.shape), np.float32)
        self.read_window(trajectory, start, frames)
        return {
            "x": torch.from_numpy(frames).transpose(0, 1),
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
        return trajectory, i - (int(self._ends[trajectory - 1]) if trajectory else 0)

    def window(self, trajectory: int, start: int) -> int:
        """(trajectory, start) -> the window's number."""
        before = int(self._ends[trajectory - 1]) if trajectory else 0
        if not 0 <= start < int(self._ends[trajectory]) - before:
            raise IndexError(f"trajectory {trajectory} has no window at {start}")
        return before + start

    def read_window(self, trajectory: int, start: int, out: np.ndarray) -> None:
        """Reads a window into `out`, (L, C, *S) float32, C-contiguous."""
        part, i = self._where[trajectory]
        stop = start + self.length * self.stride
        self._readers[part].read(i, range(start, stop, self.stride), out)

    def read_trajectory(self, i: int, frames: slice = slice(None)) -> Tensor:
        """Frames of trajectory `i` at once: (C, T, *S) float32."""
        part, row = self._where[i]
        chosen = range(*frames.indices(int(self.frames[i])))
        out = np.empty((len(chosen), *self.shape), np.float32)
        self._readers[part].read(row, chosen, out)
        return torch.from_numpy(out).transpose(0, 1)

    def label(self, i: int) -> Tensor:
        """Label of trajectory `i`, (D,) float32: scalars, then two boundary codes per axis."""
        return torch.from_numpy(self.labels[i].copy())

    def meta(self, i: int) -> dict[str, Any]:
        """Metadata of trajectory `i` (see `docs/shards.md`), and its `key`."""
        part, row = self._where[i]
        return self.indexes[part].meta(row)


def _check_alike(indexes: Sequence[Index]) -> None:
    first = indexes[0]
    for index in indexes[1:]:
        for name in ("kind", "shape", "fields", "ranks", "axes", "scalars", "gravity"):
            if getattr(index, name) != getattr(first, name):
                raise ValueError(
                    f"{index.folder} has {name} {getattr(index, name)}, {first.folder} has "
                    f"{getattr(first, name)}; they cannot be read together"
                )
