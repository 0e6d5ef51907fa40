"""Seeds and permutations from integer hashes, equal on all machines, ranks and library versions.

The hash is the finaliser of SplitMix64, a bijection of 64-bit integers that passes the usual
statistical test suites. The generators of numpy and torch do not promise the same stream in every
version.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele, Lea & Flood, 2014)
    | https://doi.org/10.1145/2714064.2660195
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

__all__ = ["derive", "hash64", "permutation", "permutation_within", "sample_seeds", "uniform"]

UInt64Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]"

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's multipliers
_CHUNK = 1 << 15  # elements hashed at a time, so that temporaries stay in cache


def _mix(x: UInt64Array) -> UInt64Array:
    """SplitMix64's finaliser, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x


def hash64(*parts: int) -> int:
    """Hashes a sequence of integers to one unsigned 64-bit integer."""
    state = 0
    for part in parts:
        state = (state + part + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def derive(seeds: np.ndarray, count: int) -> np.ndarray:
    """Derives several seeds from each seed.

    Arguments:
        seeds: The seeds, integers with shape (B,).
        count: The number n of seeds derived from each.

    Returns:
        The derived seeds in [0, 2⁶³), int64 with shape (B, n).
    """
    states = _mix(np.asarray(seeds, np.int64).astype(np.uint64) + np.uint64(_GOLDEN))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(states[:, None] + steps) >> np.uint64(1)).astype(np.int64)


def uniform(seeds: np.ndarray, count: int) -> np.ndarray:
    """Draws uniform numbers from each seed.

    Arguments:
        seeds: The seeds, integers with shape (B,).
        count: The number n of seeds derived from each.

    Returns:
        Multiples of 2⁻⁵³ in [0, 1), float64 with shape (B, n).
    """
    return (derive(seeds, count) >> 10) * 2.0**-53


def sample_seeds(seed: int, epoch: int, windows: np.ndarray) -> np.ndarray:
    """Returns one seed per window: a hash of the run's seed, the epoch and the window id.

    Arguments:
        seed: The seed of the run.
        epoch: The epoch, counted from 0.
        windows: The window ids, integers with shape (B,); -1 (padding) has a seed, too.

    Returns:
        The seeds in [0, 2⁶³), int64 with shape (B,).
    """
    ids = np.asarray(windows, np.int64).astype(np.uint64)
    keys = _mix(ids * np.uint64(_GOLDEN) + np.uint64(hash64(seed, epoch)))
    return (keys >> np.uint64(1)).astype(np.int64)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a uniform permutation of 0 … n - 1, a function of the seed and the epoch.

    The ids are sorted by a hash. Hash and id share one 64-bit word, so one plain sort suffices.

    Returns:
        The permutation, int64 with shape (n,).
    """
    bits = np.uint64(max(n - 1, 1).bit_length())
    offset = np.uint64(hash64(seed, epoch, n))
    keys = np.arange(n, dtype=np.uint64)
    for start in range(0, n, _CHUNK):
        ids = keys[start : start + _CHUNK]
        hashed = _mix(_mix(ids * np.uint64(_GOLDEN) + offset))
        ids |= hashed >> bits << bits
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def permutation_within(groups: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the ids 0 … n - 1, sorted by group and uniformly permuted within each group.

    Arguments:
        groups: The group of each id, counted from 0, integers with shape (n,).
        seed, epoch: The integers that determine the permutation.

    Returns:
        The ids, int64 with shape (n,).
    """
    order = permutation(len(groups), seed, epoch)
    return order[np.argsort(groups[order], kind="stable")]
