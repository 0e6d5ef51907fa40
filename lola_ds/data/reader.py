"""Reading frames: one positioned read each, straight into the caller's memory, and checked."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from .format import STORED, ShardError, checksum, decode_frames
from .index import Index

OPEN_FILES = 128  # shards kept open at once


class OpenFile:
    """A file opened for positioned reads, closed when the last reference to it goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise ShardError(f"{path}: shard missing; was the folder moved or cleaned?") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns the bytes read, fewer only at the file's end."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done


class FrameReader:
    """Reads frames of one split. Safe to share between threads; reopens files after pickling.

    Arguments:
        index: the split's index.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple:
        return FrameReader, (self.index,)

    def read(self, trajectory: int, frames: Sequence[int] | range, out: np.ndarray) -> None:
        """Reads frames of a trajectory.

        Arguments:
            trajectory: its number in the index.
            frames: frame numbers.
            out: where to, (len(frames), C, *S) float32, C-contiguous.

        Raises:
            ShardError: a shard is missing or truncated, or a frame's checksum is wrong; names
                shard, key, frame and byte offset.
        """
        stored = out
        if self.index.dtype != "float32":
            stored = np.empty(out.shape, STORED[self.index.dtype])
        rows = stored.reshape(len(out), -1).view(np.uint8)
        for t, row in zip(frames, rows, strict=True):
            self._read_frame(trajectory, t, row)
        if stored is not out:
            out[...] = decode_frames(stored, self.index.dtype)

    def _read_frame(self, trajectory: int, t: int, row: np.ndarray) -> None:
        index = self.index
        frame = int(index.first[trajectory]) + t
        shard, offset = int(index.frame_shards[frame]), int(index.frame_offsets[frame])
        count = self._open(shard).read_into(row.data, offset)
        if count == row.nbytes and checksum(row) == int(index.checksums[frame]):
            return
        problem = "checksum mismatch" if count == row.nbytes else f"file ends after {count} bytes"
        raise ShardError(
            f"{index.folder / index.shards[shard]}: {problem} in trajectory "
            f"{index.meta(trajectory)['key']}, frame {t}, byte offset {offset}"
        )

    def _open(self, shard: int) -> OpenFile:
        """The shard's file; the least recently used one makes room (readers keep theirs alive)."""
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = OpenFile(self.index.folder / self.index.shards[shard])
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard)
            return file
