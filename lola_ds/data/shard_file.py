"""One tar of a split while it grows: written in sequence, synced, read back, then named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..durable import flush
from .format import TAR_END, ShardError, checksum


class GrowingShard:
    """A tar that grows under a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.members: list[dict[str, Any]] = []
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by complete or discard)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.size += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            hint = f"{error.strerror}; complete shards are kept, run again to go on"
            raise OSError(error.errno, hint, str(self.path)) from error
        self._forget()  # starts writing back, so that the end waits for little

    def _forget(self) -> None:
        """Tells the system that these bytes are not needed in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def complete(self, path: Path) -> None:
        """Ends the tar, makes it last, reads every frame back, and gives it its name."""
        self.write(TAR_END)
        os.fsync(self._file.fileno())
        self._forget()  # so that they are read back from the disk
        self._file.close()
        self._verify()
        os.replace(self.path, path)
        flush(path.parent)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _verify(self) -> None:
        with open(self.path, "rb") as file:
            if hasattr(os, "posix_fadvise"):  # larger reads ahead
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            for member in self.members:
                start, stop, _ = member["frames"]
                file.seek(member["offset"])
                frame = bytearray(member["frame_bytes"])
                for t, expected in zip(range(start, stop), member["checksums"], strict=True):
                    count = file.readinto(frame)
                    if count < len(frame) or f"{checksum(frame):016x}" != expected:
                        raise ShardError(
                            f"{self.path}: {member['key']}, frame {t} read back differs from what "
                            "was written; check the disk and run again"
                        )
