"""Reading frames straight into the caller's memory, each frame checked once.

A frame is hashed the first time this process reads it, right after the read, while it is in the
core's cache; and again whenever its shard has changed since: what is remembered of a frame is a
stamp of the file (device, inode, size, times) under which its bytes were right. So every corruption
that is there at the first read is caught, and so is any later one that goes through the file
system; a disk that decays between two reads of one process is caught by `verify_reads` only, which
hashes at every read. What a call asks for twice is read once and copied, which windows that overlap
gain by. Tables are consulted for all frames of a call at once; the rest is one call into C
(`native`), which reads, hashes and copies without the interpreter.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np

from lola_ds.data.format import ShardError, checksum
from lola_ds.data.index import Index
from lola_ds.data.native import (
    Outcome,
    Problem,
    map_file,
    plan_reads,
    read_frames,
    release_file,
    unmap_file,
)

__all__ = ["FrameReader", "OpenFile"]

OPEN_FILES = 128  # shards kept open at once
MAPPED_BYTES = 1 << 32  # bytes copied before the mapped pages are dropped from this process


class OpenFile:
    """A file opened for positioned reads, closed when the last reference to it goes.

    Attributes:
        path: its name.
        descriptor: the open file.
        size: bytes it had when it was opened.
        address: where it is mapped; 0 if it is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise ShardError(f"{path}: shard missing; was the folder moved or cleaned?") from None
        self.size = os.fstat(self.descriptor).st_size
        self.address = map_file(self.descriptor, self.size)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            unmap_file(self.address, self.size)
            os.close(self.descriptor)

    def release(self) -> None:
        """Drops the pages that were read from this process's memory, which would grow otherwise."""
        release_file(self.address, self.size)

    def stamp(self) -> int:
        """A 64-bit hash that changes when the file is replaced or written to."""
        try:
            found = os.fstat(self.descriptor)
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}") from error
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return hash((found.st_dev, found.st_ino, found.st_size, *times)) or 1  # 0: never read


class FrameReader:
    """Reads frames of one split. Safe to share between threads; reopens files after pickling.

    Arguments:
        index: the split's index.
        verify_reads: hash every frame at every read, not only at its first.
    """

    def __init__(self, index: Index, verify_reads: bool = False) -> None:
        self.index, self.verify_reads = index, verify_reads
        self._frame_bytes = index.frame_bytes
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()
        self._copied = 0  # bytes copied since the last release
        self._verified = np.zeros(len(index.checksums), np.int64)  # stamp at the check

    def __reduce__(self) -> tuple:
        return FrameReader, (self.index, self.verify_reads)

    def read(self, frames: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Reads frames as they are stored.

        Arguments:
            frames: rows of the index's tables of frames, (n,).
            out: where to, (m, C, *S) of the stored type, C-contiguous.
            rows: which of `out` each frame becomes, (n,); all in order by default.

        Raises:
            ShardError: a shard is missing or truncated, or a frame's checksum is wrong; names
                shard, key, frame and byte offset.
        """
        if not len(frames):
            return
        index, rows = self.index, np.arange(len(frames)) if rows is None else rows
        reads = plan_reads(self._frame_bytes, frames, rows, index.segment_first, index.segments)
        frames = reads.frames
        files = {shard: self._open(shard) for shard in set(reads.shards.tolist())}
        table = np.empty((len(index.shards), 4), np.int64)
        for shard, file in files.items():
            table[shard] = file.descriptor, file.address, file.size, file.stamp()
        before, digests = table[reads.shards, 3], index.checksums[frames]
        ended = read_frames(
            self._frame_bytes,
            table,
            reads.shards,
            reads.offsets,
            digests,
            (self._verified[frames] != before) | self.verify_reads,
            reads.bounds,
            reads.rows,
            out,
        )
        if ended.problem is not Problem.NONE:
            raise self._error(int(frames[ended.frame]), _describe(ended))
        if any(file.stamp() != table[shard, 3] for shard, file in files.items()):
            for row, frame, digest in zip(reads.rows[reads.bounds[:-1]], frames, digests):
                if checksum(out[row]) != digest:  # the file changed during the read
                    raise self._error(int(frame), "checksum mismatch")
        self._verified[frames] = before
        self._copied += len(frames) * self._frame_bytes
        if self._copied > MAPPED_BYTES:
            self.release()

    def release(self) -> None:
        """Drops all pages of shards from this process's memory; they stay in the page cache."""
        self._copied = 0
        with self._lock:
            files = list(self._files.values())
        for file in files:
            file.release()

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


def _describe(ended: Outcome) -> str:
    """Describes why a frame could not be read."""
    if ended.problem is Problem.FAILED:
        return os.strerror(ended.error)
    if ended.problem is Problem.ENDED:
        return f"file ends after {ended.bytes} bytes"
    return "checksum mismatch"
