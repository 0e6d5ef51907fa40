"""Seeds and orders from a hash: the same on every machine, rank, worker and library version.

`mix` is the finaliser of SplitMix64, a bijection of 64-bit integers whose outputs pass the usual
statistical batteries. Generators of numpy and torch promise no stable stream across versions;
integer arithmetic does.

References:
    Steele, Lea & Flood (2014), Fast Splittable Pseudorandom Number Generators.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

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
    """Hashes integers, in order, to one unsigned 64-bit integer."""
    state = 0
    for part in parts:
        state = (state + part + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def derive(seeds: np.ndarray, count: int) -> np.ndarray:
    """Several seeds from each seed.

    Arguments:
        seeds: (B,) integers.
        count: how many from each.

    Returns:
        (B, count) int64 in [0, 2^63).
    """
    states = _mix(np.asarray(seeds, np.int64).astype(np.uint64) + np.uint64(_GOLDEN))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(states[:, None] + steps) >> np.uint64(1)).astype(np.int64)


def uniform(seeds: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers from each seed.

    Arguments:
        seeds: (B,) integers.
        count: how many from each.

    Returns:
        (B, count) float64, multiples of 2^-53 in [0, 1).
    """
    return (derive(seeds, count) >> 10) * 2.0**-53


def sample_seeds(seed: int, epoch: int, windows: np.ndarray) -> np.ndarray:
    """One seed a window: a hash of (run seed, epoch, window id).

    Arguments:
        seed: the run's seed.
        epoch: the epoch, from 0.
        windows: window ids, (B,) integers; -1 (padding) has a seed too.

    Returns:
        (B,) int64 in [0, 2^63).
    """
    ids = np.asarray(windows, np.int64).astype(np.uint64)
    keys = _mix(ids * np.uint64(_GOLDEN) + np.uint64(hash64(seed, epoch)))
    return (keys >> np.uint64(1)).astype(np.int64)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A uniform permutation of 0..n-1, fixed by (seed, epoch).

    The ids are sorted by a hash; id and hash share one 64-bit word, so that one plain sort does.

    Returns:
        (n,) int64; 10^7 ids take about a second.
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
    """The ids 0..n-1 sorted by group, uniformly permuted within each group.

    Arguments:
        groups: group of each id, (n,) integers from 0.
        seed, epoch: fix the permutation.

    Returns:
        (n,) int64.
    """
    order = permutation(len(groups), seed, epoch)
    return order[np.argsort(groups[order], kind="stable")]
