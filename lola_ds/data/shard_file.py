"""A shard being written: appended to, synced, read back, then renamed.

Frames are read back by a second thread while later ones are written: it forces what is there to the
disk, makes the system forget it, and compares what comes back with the checksums.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lola_ds.atomic_io import move_into_place
from lola_ds.data.format import TAR_END, ShardError, checksum

__all__ = ["GrowingShard"]

READ_BACK = 64_000_000  # bytes that are forced to the disk and read back at a time
PIECE = 131_072  # bytes of one read: in sequence, they come to lie in large pieces of memory
PAGE = 65_536  # a multiple of any page size


class _Frame(NamedTuple):
    """A frame that was written, and its name in error messages."""

    offset: int
    size: int
    digest: str
    name: str


class GrowingShard:
    """A tar that grows under a temporary name.

    Attributes:
        path: the temporary name.
        size: bytes so far.
        members: what its record will say of its members.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.members: list[dict[str, Any]] = []
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by complete or discard)
        self._helper = ThreadPoolExecutor(1, "lola-read-back")
        self._written: deque[_Frame] = deque()  # and not read back yet
        self._checks: list[Future] = []
        self._checked = 0  # bytes

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            hint = f"{error.strerror}; complete shards are kept, run again to go on"
            raise OSError(error.errno, hint, str(self.path)) from error
        self._forget()  # starts writing back, so that the end waits for little

    def write_frames(self, data: memoryview, digests: Sequence[str], key: str, first: int) -> None:
        """Appends frames of equal size, to be read back.

        Arguments:
            data: their bytes.
            digests: their checksums, in hexadecimal.
            key: their trajectory's.
            first: number of the first of them.
        """
        start, size = self.size, data.nbytes // len(digests)
        self.write(data)
        self._written += [
            _Frame(start + i * size, size, digest, f"{key}, frame {first + i}")
            for i, digest in enumerate(digests)
        ]
        if self.size - self._checked > READ_BACK:
            self._check(self.size // PAGE * PAGE)  # whole pages: they are not written to again

    def complete(self, path: Path) -> None:
        """Ends the tar, forces it to the disk, and renames it once every frame was read back.

        Raises:
            ShardError: a frame comes back from the disk other than it was written.
        """
        self.write(TAR_END)
        self._check(self.size)
        for check in self._checks:
            check.result()
        self._close()
        move_into_place(self.path, path)

    def discard(self) -> None:
        """Deletes the unfinished shard."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._helper.shutdown(cancel_futures=True)
        self._file.close()

    def _forget(self) -> None:
        """Tells the system that these bytes are not needed in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _check(self, stop: int) -> None:
        """Has the frames that end before `stop` read back."""
        frames = []
        while self._written and self._written[0].offset + self._written[0].size <= stop:
            frames.append(self._written.popleft())
        self._checks.append(self._helper.submit(self._read_back, frames))
        self._checked = stop

    def _read_back(self, frames: Sequence[_Frame]) -> None:
        descriptor = self._file.fileno()
        os.fsync(descriptor)
        self._forget()  # so that they come from the disk
        buffer = bytearray()
        for frame in frames:
            if len(buffer) != frame.size:
                buffer = bytearray(frame.size)
            view, count = memoryview(buffer), 0
            for start in range(0, frame.size, PIECE):
                count += os.preadv(descriptor, (view[start : start + PIECE],), frame.offset + start)
            if count < frame.size or f"{checksum(buffer):016x}" != frame.digest:
                raise ShardError(
                    f"{self.path}: {frame.name} read back differs from what was written; check "
                    "the disk and run again"
                )
