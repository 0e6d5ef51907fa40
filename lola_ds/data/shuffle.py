"""Shuffling: which windows an epoch visits, and in which order.

An order maps an epoch to its *draws*: integers whose remainder by the number of windows is the
window, and whose quotient counts how often the epoch has drawn it before (0 unless a mixture
repeats a small dataset). It is a function of (seed, epoch) alone, so ranks need not talk.

    FullShuffle    a uniform permutation of all windows
    BlockShuffle   the same within blocks of shards that fit a byte budget, blocks in random order
    Mixture        several datasets in given proportions

Symbols: n windows, N trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lola_ds.data.windows import ShardDataset
from lola_ds.hashing import hash64, permutation, permutation_within, sample_seeds

__all__ = ["BlockShuffle", "FullShuffle", "Mixture", "Order", "apportion", "make_order"]

ROUNDS = 64  # most attempts at separating neighbours; each leaves a small fraction


class Order(Protocol):
    """The order in which a sampler visits windows.

    Attributes:
        draws: number of draws in every epoch.
        windows: number of windows.
    """

    @property
    def draws(self) -> int: ...

    @property
    def windows(self) -> int: ...

    def __call__(self, epoch: int) -> np.ndarray:
        """The draws of an epoch, (draws,) int64."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What fixes the order besides the number of draws; saved, and compared on resuming."""
        ...


@dataclass(frozen=True)
class FullShuffle:
    """Every window once an epoch, uniformly permuted."""

    windows: int
    seed: int

    @property
    def draws(self) -> int:
        return self.windows

    def __call__(self, epoch: int) -> np.ndarray:
        return permutation(self.windows, self.seed, epoch)

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed}


class BlockShuffle:
    """Every window once an epoch, in blocks of shards that fit a byte budget.

    Each epoch divides the shards anew among as few blocks as fit the budget (one shard, if that is
    larger) and visits the blocks in random order, so that a block's bytes are read from the file
    system once and then from memory. A block is shuffled uniformly; neighbours of one trajectory,
    more frequent than in a full shuffle because a block has fewer trajectories, are then separated
    by random exchanges until an epoch is expected to hold at most 1.5 times as many as a full
    shuffle would. A block of one trajectory only cannot be separated.

    Arguments:
        shards: the shard of every window (of its first frame), (n,).
        trajectories: the trajectory of every window, (n,).
        shard_bytes: size of every shard.
        budget: bytes of a block.
        seed: fixes every epoch.

    Raises:
        ValueError: the budget is not positive.
    """

    def __init__(
        self,
        shards: np.ndarray,
        trajectories: np.ndarray,
        shard_bytes: np.ndarray,
        budget: int,
        seed: int,
    ) -> None:
        if budget < 1:
            raise ValueError(f"shuffle_bytes={budget}: must be at least 1")
        self.seed, self.budget = seed, budget
        self._shards = np.asarray(shards)
        self._trajectories = np.asarray(trajectories)
        self._sizes = np.asarray(shard_bytes, np.int64)

    @property
    def windows(self) -> int:
        return len(self._shards)

    @property
    def draws(self) -> int:
        return self.windows

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "shuffle_bytes": self.budget}

    def blocks(self, epoch: int) -> np.ndarray:
        """The block of every shard in an epoch; blocks are visited by their number."""
        order = permutation(len(self._sizes), hash64(self.seed, 1), epoch)
        ends = np.cumsum(self._sizes[order])
        blocks = np.empty(len(order), np.int64)
        for count in range(-(-int(ends[-1]) // self.budget), len(order) + 1):
            middle = ends - self._sizes[order] / 2
            blocks[order] = np.floor(middle * (count / ends[-1])).astype(np.int64)
            if np.bincount(blocks, self._sizes).max() <= self.budget:
                return blocks
        blocks[order] = np.arange(len(order))
        return blocks

    def __call__(self, epoch: int) -> np.ndarray:
        groups = self.blocks(epoch)[self._shards]
        order = permutation_within(groups, self.seed, epoch)
        return self._separate(order, groups[order], epoch)

    def _separate(self, order: np.ndarray, groups: np.ndarray, epoch: int) -> np.ndarray:
        """Exchanges windows within blocks until few neighbours are of one trajectory."""
        _, counts = np.unique(self._trajectories, return_counts=True)
        allowed = int(1.5 * (counts * (counts - 1)).sum() / len(order))
        sizes = np.bincount(groups)
        first = np.cumsum(sizes) - sizes
        for attempt in range(ROUNDS):
            which = self._trajectories[order]
            bad = np.flatnonzero(which[1:] == which[:-1]) + 1
            if len(bad) <= allowed:
                break
            # Which windows are exchanged, and with which, follows from a hash of their positions.
            key = hash64(self.seed, epoch, attempt)
            bad = bad[permutation(len(bad), key, 0)[allowed:]]
            block = groups[bad]
            partner = first[block] + sample_seeds(key, 1, bad) % sizes[block]
            _, unique = np.unique(np.concatenate([bad, partner]), return_index=True)
            alone = np.zeros(2 * len(bad), bool)
            alone[unique] = True
            alone = alone[: len(bad)] & alone[len(bad) :]
            bad, partner = bad[alone], partner[alone]
            order[bad], order[partner] = order[partner], order[bad]
        return order


class Mixture:
    """Several datasets in fixed proportions.

    Each dataset runs through its own order, epoch after epoch, at its own pace: of every n draws,
    n w_d / sum(w) are its next ones. Every window of a dataset is thus drawn once before any is
    drawn again, whatever the weights. Which places of an epoch belong to which dataset is a uniform
    permutation.

    Arguments:
        orders: one for each dataset; windows are numbered dataset by dataset.
        weights: their shares of the draws, of any positive sum.
        seed: fixes the places.
        draws: number of draws in an epoch (that of all windows by default).

    Raises:
        ValueError: a weight is negative, all are zero, or there are not as many as orders.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        weights: Sequence[float],
        seed: int,
        draws: int | None = None,
    ) -> None:
        if len(weights) != len(orders):
            raise ValueError(f"weights={list(weights)}: give one for each of {len(orders)} folders")
        if min(weights, default=0) < 0 or not sum(weights) > 0:
            raise ValueError(f"weights={list(weights)}: must be positive, or zero for some")
        self.orders, self.seed = list(orders), seed
        self.weights = [float(weight) for weight in weights]
        self._offsets = np.cumsum([0, *(order.windows for order in orders)])
        self._draws = self.windows if draws is None else draws
        self.counts = apportion(self._draws, self.weights)

    @property
    def windows(self) -> int:
        return int(self._offsets[-1])

    @property
    def draws(self) -> int:
        return self._draws

    def identity(self) -> dict[str, Any]:
        parts = [dict(order.identity()) for order in self.orders]
        return {"seed": self.seed, "weights": self.weights, "orders": parts}

    def __call__(self, epoch: int) -> np.ndarray:
        draws = [self._part(d, epoch) for d, count in enumerate(self.counts) if count]
        order = np.empty(self.draws, np.int64)
        order[permutation(self.draws, hash64(self.seed, 2), epoch)] = np.concatenate(draws)
        return order

    def _part(self, d: int, epoch: int) -> np.ndarray:
        """The draws of dataset `d` in an epoch."""
        order, count, begin = self.orders[d], self.counts[d], epoch * self.counts[d]
        first, last = begin // order.draws, (begin + count - 1) // order.draws
        passes = [order(number) + self._offsets[d] for number in range(first, last + 1)]
        windows = np.concatenate(passes)[begin - first * order.draws :][:count]
        return windows + _earlier(windows) * self.windows


def _earlier(values: np.ndarray) -> np.ndarray:
    """Counts how often each value occurred earlier, (n,)."""
    places = np.argsort(values, kind="stable")
    ordered = values[places]
    run = np.searchsorted(ordered, ordered, side="left")
    earlier = np.empty_like(values)
    earlier[places] = np.arange(len(values)) - run
    return earlier


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Splits `total` in proportion to weights, by largest remainders."""
    shares = np.asarray(weights, np.float64) * (total / sum(weights))
    counts = np.floor(shares).astype(np.int64)
    most = np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return counts.tolist()


def make_order(
    dataset: ShardDataset,
    seed: int,
    *,
    shuffle_bytes: int | None = None,
    weights: Sequence[float] = (),
) -> Order:
    """Returns the order for a dataset: by default, a full shuffle.

    Arguments:
        dataset: the windows.
        seed: fixes every epoch.
        shuffle_bytes: byte budget of a shuffle; where a dataset exceeds it, blocks of its shards
            are shuffled instead of the whole.
        weights: one for each folder of the dataset: their shares of the samples. By default, every
            window has the same weight.

    Raises:
        ValueError: see `BlockShuffle` and `Mixture`.
    """
    if not weights:
        return _shuffle(dataset, slice(None), seed, shuffle_bytes)
    ends = np.cumsum(dataset.parts).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, dataset.parts)]
    orders = [
        _shuffle(dataset, part, hash64(seed, d), shuffle_bytes) for d, part in enumerate(parts)
    ]
    return Mixture(orders, weights, seed)


def _shuffle(dataset: ShardDataset, part: slice, seed: int, budget: int | None) -> Order:
    windows = len(range(*part.indices(len(dataset))))
    if budget is None:
        return FullShuffle(windows, seed)
    shards, trajectories = (table[part] for table in dataset.places())
    used, shards = np.unique(shards, return_inverse=True)
    sizes = dataset.shard_sizes[used]
    if sizes.sum() <= budget:
        return FullShuffle(windows, seed)
    return BlockShuffle(shards, trajectories, sizes, budget, seed)
