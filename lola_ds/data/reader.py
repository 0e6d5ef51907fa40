"""Reading frames: positioned reads straight into the caller's memory, each frame checked once.

A frame is hashed the first time this process reads it, right after the read, while it is in the
core's cache; and again whenever its shard has changed since: what is remembered of a frame is a
stamp of the file (device, inode, size, times) under which its bytes were right. So every corruption
that is there at the first read is caught, and so is any later one that goes through the file
system; a disk that decays between two reads of one process is caught by `recheck` only, which
hashes at every read. Frames that follow each other in the shard and in memory share one read, and
what a call asks for twice is read once and copied, which windows that overlap gain by. Tables are
consulted for all frames of a call at once; what remains for each frame is a call into C that
releases the interpreter.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np

from .format import ShardError, checksum
from .index import Index

OPEN_FILES = 128  # shards kept open at once
READ_BYTES = 1 << 19  # of frames that share a read; stays in a core's cache until it is hashed


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

    def stamp(self) -> int:
        """A 64-bit hash of what tells that the file is the same and was not written to."""
        try:
            found = os.fstat(self.descriptor)
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}") from error
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return hash((found.st_dev, found.st_ino, found.st_size, *times)) or 1  # 0: never read

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns the bytes read, fewer only at the file's end.

        Raises:
            ShardError: the disk or file system failed; names the file and the offset.
        """
        done = 0
        try:
            done = os.preadv(self.descriptor, (buffer,), offset)
            while 0 < done < len(buffer):
                count = os.preadv(self.descriptor, (buffer[done:],), offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            at = f"byte offset {offset + done}"
            raise ShardError(f"{self.path}: {error.strerror} at {at}") from error
        return done


class FrameReader:
    """Reads frames of one split. Safe to share between threads; reopens files after pickling.

    Arguments:
        index: the split's index.
        recheck: hash every frame at every read, not only at its first.
    """

    def __init__(self, index: Index, recheck: bool = False) -> None:
        self.index, self.recheck = index, recheck
        self._frame_bytes = index.frame_bytes
        self._at_once = max(1, READ_BYTES // self._frame_bytes)
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()
        self._verified = np.zeros(len(index.checksums), np.int64)  # stamp under which it was right

    def __reduce__(self) -> tuple:
        return FrameReader, (self.index, self.recheck)

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
        shards, offsets = index.places(frames)
        rows = out.reshape(-1).view(np.uint8).reshape(len(frames), size)
        memory = rows.reshape(-1).data
        places, starts = shards.tolist(), offsets.tolist()
        files = {shard: self._open(shard) for shard in set(places)}
        stamps = {shard: file.stamp() for shard, file in files.items()}
        before = np.array([stamps[shard] for shard in places])
        trusted = (self._verified[frames] == before) & (not self.recheck)
        digests = index.checksums[frames].tolist()
        fresh = (~trusted).tolist()

        def check(i: int) -> None:
            if checksum(memory[i * size : (i + 1) * size]) != digests[i]:
                raise self._error(int(frames[i]), "checksum mismatch")

        for first, stop, source in self._runs(shards, offsets, _repeats(frames)):
            if source is not None:
                rows[first] = rows[source]
                continue
            target = memory[first * size : stop * size]
            count = files[places[first]].read_into(target, starts[first])
            if count < len(target):
                row = first + count // size
                raise self._error(int(frames[row]), f"file ends after {count % size} bytes")
            for i in range(first, stop):
                if fresh[i]:
                    check(i)
        if any(file.stamp() != stamps[shard] for shard, file in files.items()):
            for i in range(len(frames)):  # what was trusted may have changed meanwhile
                check(i)
        self._verified[frames] = before

    def _runs(
        self, shards: np.ndarray, offsets: np.ndarray, repeats: dict[int, int]
    ) -> list[tuple[int, int, int | None]]:
        """What to do for rows [first, stop), in order: copy a row, or (None) read them at once.

        Arguments:
            shards, offsets: where the frames lie, (n,).
            repeats: rows that are the same frame as an earlier one.
        """
        follows = (offsets[1:] - offsets[:-1] == self._frame_bytes) & (shards[1:] == shards[:-1])
        copied = np.array(list(repeats), np.int64)
        follows[copied - 1] = False
        follows[copied[copied < len(follows)]] = False
        step = self._at_once
        if step == 1 or not follows.any():
            return [(i, i + 1, repeats.get(i)) for i in range(len(shards))]
        bounds = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(shards)]
        return [
            (i, min(i + step, stop), repeats.get(i))
            for first, stop in itertools.pairwise(bounds)
            for i in range(first, stop, step)
        ]

    def _error(self, frame: int, problem: str) -> ShardError:
        index = self.index
        trajectory = int(np.searchsorted(index.first, frame, side="right")) - 1
        shard, offset = index.places(frame)
        return ShardError(
            f"{index.folder / index.shards[int(shard)]}: {problem} in trajectory "
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


def _repeats(frames: np.ndarray) -> dict[int, int]:
    """Positions at which a value of `frames` (n,) occurs again -> the position of its first."""
    ordered = np.sort(frames)
    if (ordered[1:] != ordered[:-1]).all():
        return {}
    _, first, inverse = np.unique(frames, return_index=True, return_inverse=True)
    source = first[inverse]
    again = np.flatnonzero(source < np.arange(len(frames)))
    return dict(zip(again.tolist(), source[again].tolist()))
