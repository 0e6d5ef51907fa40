"""The compiled part: what takes too long in Python, run without the interpreter's lock.

`plan_reads.c` finds the frames of a call, `frames.c` reads them, `xxh3.c` hashes them, `mapping.c`
maps their files into memory, and `moments.c` computes statistics. `module.c` is the module
`_lola_ds`, which `hatch_build.py` compiles when the package is installed. It runs on every
processor of its architecture, with the widest vector instructions that are found at import.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np

try:
    import _lola_ds
except ImportError:
    raise ImportError("_lola_ds, the compiled part of lola_ds, is missing: `make setup`") from None

__all__ = [
    "XXH3",
    "Outcome",
    "Problem",
    "Reads",
    "map_file",
    "plan_reads",
    "read_frames",
    "release_file",
    "sum_moments",
    "unmap_file",
]

_INTERFACE = 4  # as in module.c

if _lola_ds.INTERFACE != _INTERFACE:
    raise ImportError("_lola_ds was compiled from other sources than these: `make setup`")


class Problem(enum.IntEnum):
    """Why a frame could not be read, as in `native.h`."""

    NONE = 0
    FAILED = 1  # the system says why
    ENDED = 2  # the file is shorter
    DIFFERS = 3  # another checksum


class Outcome(NamedTuple):
    """How a call ended: the first frame with a problem, if there is one.

    Attributes:
        problem: what it is.
        frame: number of that frame in the call's tables.
        bytes: how many of its bytes were read.
        error: the system's error number.
    """

    problem: Problem
    frame: int
    bytes: int
    error: int


class Reads(NamedTuple):
    """A plan of reads: n different frames in ascending order, and the m rows they are read into.

    Attributes:
        frames: rows of the index's tables of frames, (n,) int64.
        shards, offsets: where each lies: a shard's number and a byte offset, (n,) int64.
        bounds, rows: frame i is read into `rows[bounds[i]:bounds[i + 1]]`, at least one row; (n+1,)
            and (m,) int64.
    """

    frames: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray


def plan_reads(
    size: int, frames: np.ndarray, rows: np.ndarray, first: np.ndarray, segments: np.ndarray
) -> Reads:
    """Plans to read frame `frames[i]` into row `rows[i]`, each different frame once.

    Arguments:
        size: The bytes of a frame.
        frames: The frames, with shape (m,), int64, at least one.
        rows: The rows, with shape (m,), int64.
        first: The first frame of each segment, from 0 on, with shape (M,), int64.
        segments: The index's table of segments, with shape (M, 5), int64.

    Raises:
        ValueError: The tables do not fit each other.
    """
    table = np.empty((5, len(frames) + 1), np.int64)
    count = _lola_ds.arrange(size, frames, rows, first, segments, table)
    found, shards, offsets, bounds, rows = table
    return Reads(found[:count], shards[:count], offsets[:count], bounds[: count + 1], rows[:-1])


def read_frames(
    size: int,
    files: np.ndarray,
    shards: np.ndarray,
    offsets: np.ndarray,
    digests: np.ndarray,
    unverified: np.ndarray,
    bounds: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> Outcome:
    """Reads n different frames, each into one row of `out` or several.

    Arguments:
        size: The bytes of a frame.
        files: Descriptor, address (of `map_file`), size and stamp (not used) of each shard's file,
            with shape (S, 4), int64; arbitrary for shards that are not among `shards`.
        shards, offsets: where each lies, (n,) int64; see `Reads`.
        digests: their XXH3-64, (n,) uint64.
        unverified: which are to be compared with them, (n,) bool.
        bounds, rows: which rows of `out` each becomes, (n+1,) and (m,) int64; see `Reads`.
        out: where to, C-contiguous rows of `size` bytes.

    Raises:
        ValueError: the tables do not fit each other.
    """
    tables = (files, shards, offsets, digests, unverified, bounds, rows)
    problem, *where = _lola_ds.read_frames(size, *tables, out)
    return Outcome(Problem(problem), *where)


class XXH3:
    """The XXH3-64 (seed 0) of data that comes in pieces; one thread at a time may use it.

    Arguments:
        data: The first piece, a contiguous buffer.
    """

    def __init__(self, data: Any = b"") -> None:
        self._state = _lola_ds.start_hash()
        self.update(data)

    def update(self, data: Any) -> None:
        """Appends a piece, a contiguous buffer."""
        _lola_ds.update_hash(self._state, data)

    def intdigest(self) -> int:
        """Returns the hash of all pieces so far."""
        return _lola_ds.digest_hash(self._state)

    def hexdigest(self) -> str:
        """Returns the hash of all pieces so far, as 16 hexadecimal digits."""
        return f"{self.intdigest():016x}"


def map_file(descriptor: int, size: int) -> int:
    """Maps a file of `size` bytes; returns its address, 0 if it cannot be mapped."""
    return _lola_ds.map_file(descriptor, size) if size else 0


def unmap_file(address: int, size: int) -> None:
    """Undoes `map_file`; no thread may be reading the file."""
    if address:
        _lola_ds.unmap_file(address, size)


def release_file(address: int, size: int) -> None:
    """Drops a mapped file's pages from this process's memory; they stay in the page cache."""
    if address:
        _lola_ds.release_file(address, size)


def sum_moments(x: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Computes sums over channels in float64, with the same bits on every processor.

    Arguments:
        x: The values, with shape (T, C, N), float32, C-contiguous.
        near: A value near the mean of each channel, with shape (C,), float64.

    Returns:
        The sums of deviations from `near` and of their squares, and the smallest and largest values
        that are not NaN, with shape (4, C).
    """
    sums = np.tile((0.0, 0.0, np.inf, -np.inf), (x.shape[1], 1))
    _lola_ds.sum_moments(x.shape[2], x, near, sums)
    return sums.T
