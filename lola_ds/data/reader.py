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
from collections.abc import Iterator, Sequence
from operator import eq
from pathlib import Path
from threading import Lock

import numpy as np

from .format import ShardError, checksum
from .index import Index

OPEN_FILES = 128  # shards kept open at once
READ_BYTES = 1 << 19  # read at a time; stays in a core's cache until it is hashed


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
        if not len(frames):
            return
        index, size = self.index, self._frame_bytes
        shards, offsets = index.places(frames)
        rows = out.reshape(-1).view(np.uint8).reshape(len(frames), size)
        memory = rows.reshape(-1).data
        places, starts = shards.tolist(), offsets.tolist()
        files = {shard: self._open(shard) for shard in set(places)}
        stamps = {shard: file.stamp() for shard, file in files.items()}
        before = np.array([stamps[shard] for shard in places])
        digests, back = index.checksums[frames].tolist(), _repeats(frames)
        fresh = ((self._verified[frames] != before) | self.recheck) & (back == 0)
        unsure, copied = fresh.tolist(), back.tolist()

        def check(i: int) -> None:
            if checksum(memory[i * size : (i + 1) * size]) != digests[i]:
                raise self._error(int(frames[i]), "checksum mismatch")

        together = self._at_once if fresh.any() else len(frames)
        for piece in self._pieces(shards, offsets, back, together):
            reads = [run for run in piece if not copied[run[0]]]
            targets = [memory[first * size : stop * size] for first, stop in reads]
            sources = [files[places[first]] for first, _ in reads]
            counts = _read_all(sources, targets, [starts[first] for first, _ in reads])
            for (first, _), target, count in zip(reads, targets, counts):
                if count < len(target):
                    frame = int(frames[first + count // size])
                    raise self._error(frame, f"file ends after {count % size} bytes")
            for first, stop in (run for run in piece if copied[run[0]]):
                step = copied[first]
                for i in range(first, stop, step):  # what a copy takes must be there
                    last = min(i + step, stop)
                    rows[i:last] = rows[i - step : last - step]
            begin, end = piece[0][0], piece[-1][1]
            for i in itertools.compress(range(begin, end), unsure[begin:end]):
                check(i)
        if any(file.stamp() != stamps[shard] for shard, file in files.items()):
            for i in range(len(frames)):  # what was trusted may have changed meanwhile
                check(i)
        self._verified[frames] = before

    def _pieces(
        self, shards: np.ndarray, offsets: np.ndarray, back: np.ndarray, size: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Pieces of at most `size` rows, each as a list of its runs [first, stop).

        A run is frames that follow each other in a shard, or copies of rows that follow each other.
        What is to be hashed comes in pieces that stay in a core's cache.

        Arguments:
            shards, offsets: where the frames lie, (n,).
            back: how many rows before the same frame was, (n,); 0 where it was not.
        """
        near = (offsets[1:] - offsets[:-1] == self._frame_bytes) & (shards[1:] == shards[:-1])
        follows = (back[1:] == back[:-1]) & (near | (back[1:] > 0))
        follows[size - 1 :: size] = False
        bounds = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(shards)]
        runs = itertools.pairwise(bounds)
        for _, piece in itertools.groupby(runs, lambda run: run[0] // size):
            yield list(piece)

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


def _read_all(
    files: Sequence[OpenFile], targets: Sequence[memoryview], offsets: Sequence[int]
) -> list[int]:
    """Fills `targets`; returns the bytes read of each, fewer only where its file ends.

    The common case is one loop in C, whose threads hardly ever wait for the interpreter.
    """
    descriptors = [file.descriptor for file in files]
    try:
        counts = list(map(os.preadv, descriptors, zip(targets), offsets))
    except OSError:
        counts = [0] * len(targets)  # to be read again one by one, so that the error has a name
    if all(map(eq, counts, map(len, targets))):
        return counts
    return [file.read_into(target, at) for file, target, at in zip(files, targets, offsets)]


def _repeats(frames: np.ndarray) -> np.ndarray:
    """How many entries before each of `frames` (n,) the same value was last; 0 where it was not."""
    back, order = np.zeros(len(frames), np.int64), np.argsort(frames, kind="stable")
    again = np.flatnonzero(frames[order[1:]] == frames[order[:-1]])
    back[order[again + 1]] = order[again + 1] - order[again]
    return back
