"""Atomic writes: a file or folder appears complete or not at all, and survives a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["fsync", "move_into_place", "replace_folder", "replacing", "write_atomic"]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes or replaces a file; text is encoded in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well.

    The temporary path is hidden, keeps the suffix, and is unique: several processes may write the
    same file. It is removed when the block raises an exception.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Renames a complete file or folder, forced to the disk; an existing file is replaced.

    Of a folder the list of names is forced to the disk; its files are left to those who write them.
    """
    fsync(source)
    os.replace(source, target)
    fsync(target.parent)


def replace_folder(source: Path, target: Path) -> None:
    """As `move_into_place`; an existing folder steps aside first and is removed afterwards."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    move_into_place(source, target)
    shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Forces the bytes of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
