"""One global order of windows, cut in global batches, dealt to any number of ranks.

Seed and epoch fix a permutation of all windows. Global batch k is its entries k G, …, k G + G - 1
(G the global batch size), padded with -1 at the end of the epoch. Rank r of W takes every W-th
entry from the r-th: padding spreads evenly, and every rank has G / W entries. The state is the
epoch and the number of entries used, whatever W.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .hashing import permutation


class Step(NamedTuple):
    """This rank's part of a global batch.

    Attributes:
        epoch: the epoch, from 0.
        windows: window ids, (G / W,) int64, -1 where padded.
        weight: weight of each entry that is not padding: G over their number in the global batch.
        end: (epoch, consumed) once the batch is used.
    """

    epoch: int
    windows: np.ndarray
    weight: float
    end: tuple[int, int]


class ElasticSampler:
    """Yields, for the rest of the current epoch, this rank's window ids of each global batch.

        sampler = ElasticSampler(len(windows), global_batch=32, rank=0, world_size=4, seed=0)
        for ids in sampler:             # lists of 8 ids, -1 where padded; then the epoch advances
            ...

    A batch counts as consumed once it is yielded. A state loads at any world size.

    Arguments:
        n: number of windows.
        global_batch: G, samples per step over all ranks.
        rank, world_size: this rank, and how many there are.
        seed: fixes the order of every epoch.

    Raises:
        ValueError: an argument is out of range, or the world size does not divide the global batch.
    """

    def __init__(
        self, n: int, global_batch: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        if n < 1 or global_batch < 1 or world_size < 1:
            raise ValueError(f"n={n}, global_batch={global_batch}, world_size={world_size}: >= 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must lie in 0..{world_size - 1}")
        if global_batch % world_size:
            raise ValueError(
                f"global_batch={global_batch} is not a multiple of world_size={world_size}; "
                "choose a multiple"
            )
        self.n, self.global_batch, self.seed = n, global_batch, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.consumed = 0
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(n, seed, epoch))

    def __len__(self) -> int:
        """Number of global batches left in the current epoch."""
        return -(-(self.n - self.consumed) // self.global_batch)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        for step in self.steps():
            self.advance(step)
            yield step.windows.tolist()
            if step.end[0] != epoch:
                return

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of all windows in `epoch`, (n,) int64."""
        return self._order(epoch)

    def steps(self) -> Iterator[Step]:
        """This rank's parts of all global batches from the current state on, without end.

        Does not change the state: `advance(step)` does, once the step is used.
        """
        epoch, consumed = self.epoch, self.consumed
        while True:
            step = self._step(epoch, consumed)
            yield step
            epoch, consumed = step.end

    def advance(self, step: Step) -> None:
        """Counts `step` as consumed."""
        self.epoch, self.consumed = step.end

    def _step(self, epoch: int, start: int) -> Step:
        stop = min(start + self.global_batch, self.n)
        windows = np.full(self.global_batch // self.world_size, -1, np.int64)
        mine = self.order(epoch)[start + self.rank : stop : self.world_size]
        windows[: len(mine)] = mine
        end = (epoch, stop) if stop < self.n else (epoch + 1, 0)
        return Step(epoch, windows, self.global_batch / (stop - start), end)

    def state_dict(self) -> dict[str, int]:
        """Epoch and entries consumed in it, with what fixes the order."""
        return {"epoch": self.epoch, "consumed": self.consumed, "n": self.n, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a state, saved at any world size.

        Raises:
            ValueError: the state is of another number of windows or another seed.
        """
        for name in ("n", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state was saved with {name}={state[name]}, the sampler has "
                    f"{name}={getattr(self, name)}; resume with the same data and seed"
                )
        self.epoch, self.consumed = int(state["epoch"]), int(state["consumed"])
