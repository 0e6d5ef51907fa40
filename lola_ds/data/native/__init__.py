"""The compiled part: what takes too long in Python, without the interpreter's lock.

`frames.c` reads and hashes all frames of a call, with Yann Collet's `xxhash.h` beside it;
`mapping.c` has files in memory for it; `moments.c` sums up frames for statistics; `module.c` makes
them the module `_lola_ds`, which `hatch_build.py` compiles when the package is installed. It works
on any processor of the architecture it was compiled for: the widest vectors that this one has are
found at start.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

try:
    import _lola_ds
except ImportError:
    raise ImportError("_lola_ds, the compiled part of lola_ds, is missing: `make setup`") from None

_INTERFACE = 2  # as in module.c

if _lola_ds.INTERFACE != _INTERFACE:
    raise ImportError("_lola_ds was compiled from other sources than these: `make setup`")


class Problem(enum.IntEnum):
    """Why a frame could not be read, as in `frames.h`."""

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


def read_frames(
    size: int,
    descriptors: np.ndarray,
    offsets: np.ndarray,
    mapped: np.ndarray,
    digests: np.ndarray,
    unsure: np.ndarray,
    bounds: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> Outcome:
    """Reads n different frames, in their order, each into one row of `out` or several.

    Arguments:
        size: bytes of a frame.
        descriptors, offsets: where each lies: an open file and a byte offset, (n,) int32 and int64.
        mapped: the address in memory of each, by `map_file`; 0 if it has none, (n,) int64.
        digests: their xxh3_64, (n,) uint64.
        unsure: which are to be compared with them, (n,) bool.
        bounds, rows: frame i goes to the rows `rows[bounds[i]:bounds[i + 1]]`, at least one; (n+1,)
            and (m,) int64.
        out: where to, C-contiguous rows of `size` bytes.

    Raises:
        ValueError: the tables do not fit each other.
    """
    tables = (descriptors, offsets, mapped, digests, unsure, bounds, rows)
    problem, *where = _lola_ds.read_frames(size, *tables, out)
    return Outcome(Problem(problem), *where)


def map_file(descriptor: int, size: int) -> int:
    """Maps a file of `size` bytes; returns its address for `read_frames`, 0 if it has none."""
    return _lola_ds.map_file(descriptor, size) if size else 0


def unmap_file(address: int, size: int) -> None:
    """Undoes `map_file`; nothing may be reading there."""
    if address:
        _lola_ds.unmap_file(address, size)


def sum_moments(x: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Sums over x (T, C, N) float32, C-contiguous, in float64; the same bits on any processor.

    Arguments:
        x: values.
        near: a value near the mean of each channel, (C,) float64.

    Returns:
        (4, C): sums of deviations from `near` and of their squares, the least and the largest value
        (of those that are not NaN).
    """
    sums = np.tile((0.0, 0.0, np.inf, -np.inf), (x.shape[1], 1))
    _lola_ds.sum_moments(x.shape[2], x, near, sums)
    return sums.T
