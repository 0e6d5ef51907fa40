"""Reading frames: positioned reads straight into the caller's memory, each frame checked.

A frame is hashed right after it is read, while it is in the core's cache, which costs a few percent
of the read; one that is larger is read and hashed in pieces. Frames that follow each other in the
shard and in memory share one read. Tables are consulted for all frames of a call at once; what
remains for each frame is two calls into C that release the interpreter.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from .format import ShardError
from .index import Index

OPEN_FILES = 128  # shards kept open at once
READ_BYTES = 1 << 19  # most read at once; stays in a core's cache until it is hashed
PIECE_BYTES = 1 << 18  # of a frame larger than that


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
        """Fills `buffer` from `offset`; returns the bytes read, fewer only at the file's end.

        Raises:
            ShardError: the disk or file system failed; names the file and the offset.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, (buffer[done:],), offset + done)
            except OSError as error:
                at = f"byte offset {offset + done}"
                raise ShardError(f"{self.path}: {error.strerror} at {at}") from error
            if count == 0:
                break
            done += count
        return done


def _read_in_pieces(file: OpenFile, frame: memoryview, offset: int) -> tuple[int, int]:
    """Reads a large frame; returns the bytes read and their checksum."""
    digest, done = xxh3_64(), 0
    for start in range(0, len(frame), PIECE_BYTES):
        piece = frame[start : start + PIECE_BYTES]
        count = file.read_into(piece, offset + start)
        digest.update(piece[:count])
        done += count
        if count < len(piece):
            break
    return done, digest.intdigest()


class FrameReader:
    """Reads frames of one split. Safe to share between threads; reopens files after pickling.

    Arguments:
        index: the split's index.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._frame_bytes = index.frame_bytes
        self._at_once = max(1, READ_BYTES // self._frame_bytes)
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple:
        return FrameReader, (self.index,)

    def read(self, frames: np.ndarray, out: np.ndarray) -> None:
        """Reads frames as they are stored.

        Arguments:
            frames: rows of the index's tables of frames, (n,).
            out: where to, (n, C, *S) of the stored type, C-contiguous.

        Raises:
            ShardError: a shard is missing or truncated, or a frame's checksum is wrong; names
                shard, key, frame and byte offset.
        """
        index, size = self.index, self._frame_bytes
        shards, offsets = index.frame_shards[frames], index.frame_offsets[frames]
        checksums = index.checksums[frames].tolist()
        memory = out.reshape(-1).view(np.uint8).data
        for first, stop in self._runs(shards, offsets):
            file, offset = self._open(int(shards[first])), int(offsets[first])
            if size > READ_BYTES:
                frame = memory[first * size : stop * size]
                count, found = _read_in_pieces(file, frame, offset)
                if count < size or found != checksums[first]:
                    raise self._error(int(frames[first]), count)
                continue
            count = file.read_into(memory[first * size : stop * size], offset)
            for i in range(first, stop):
                if (
                    count < (i + 1 - first) * size
                    or xxh3_64_intdigest(memory[i * size : (i + 1) * size]) != checksums[i]
                ):
                    raise self._error(int(frames[i]), max(0, count - (i - first) * size))

    def _runs(self, shards: np.ndarray, offsets: np.ndarray) -> list[tuple[int, int]]:
        """[first, stop) of frames that lie one after the other, at most so many at once."""
        if self._at_once == 1:
            return [(i, i + 1) for i in range(len(shards))]
        follows = (np.diff(offsets) == self._frame_bytes) & (np.diff(shards) == 0)
        bounds = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(shards)]
        step = self._at_once
        return [
            (i, min(i + step, stop))
            for first, stop in itertools.pairwise(bounds)
            for i in range(first, stop, step)
        ]

    def _error(self, frame: int, count: int) -> ShardError:
        index = self.index
        trajectory = int(np.searchsorted(index.first, frame, side="right")) - 1
        shard, offset = int(index.frame_shards[frame]), int(index.frame_offsets[frame])
        short = count < self._frame_bytes
        problem = f"file ends after {count} bytes" if short else "checksum mismatch"
        return ShardError(
            f"{index.folder / index.shards[shard]}: {problem} in trajectory "
            f"{index.meta(trajectory)['key']}, frame {frame - int(index.first[trajectory])}, "
            f"byte offset {offset}"
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
