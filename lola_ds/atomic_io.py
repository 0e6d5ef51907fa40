"""Files that last: they appear whole or not at all, and survive a power cut from then on."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes or replaces a file in one rename, both forced to the disk."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Forces a file's bytes, or a folder's renames, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
