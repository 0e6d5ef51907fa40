"""One global order of windows, cut into global batches and divided among any number of ranks.

Seed and epoch fix the order of an epoch's draws (see `lola_ds.data.shuffle`). Global batch k is its
entries k G, …, k G + G - 1 (G the global batch size), padded with -1 at the end of the epoch. Rank
r of W takes every W-th entry from the r-th: padding spreads evenly, and every rank has G / W
entries. The state is the epoch and the number of entries used, whatever W, and the windows in
quarantine, which are padding wherever they come up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from lola_ds.data.format import ShardError, checksum, dump_json
from lola_ds.data.shuffle import FullShuffle, Order

__all__ = ["ElasticSampler", "Step"]

BACKGROUND = 1 << 20  # from this many draws on, the next order is computed in the background
MAX_QUARANTINE = 64  # more unreadable windows mean that storage has failed


class Step(NamedTuple):
    """This rank's part of a global batch.

    Attributes:
        epoch: the epoch, from 0.
        start: entries of the epoch before the global batch.
        windows: window ids, (G / W,) int64, -1 where padded.
        draws: the order's draws, (G / W,) int64, -1 where padded: unlike a window, unique in the
            epoch.
        weight: weight of each entry that is not padding: G over their number in the global batch.
        end: (epoch, consumed) once the batch is used.
    """

    epoch: int
    start: int
    windows: np.ndarray
    draws: np.ndarray
    weight: float
    end: tuple[int, int]


class _Epochs:
    """The orders of the epochs in use, the next one computed in the background if it is long."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._kept: dict[int, np.ndarray] = {}
        self._ahead: tuple[int, Thread] | None = None

    def __call__(self, epoch: int) -> np.ndarray:
        if epoch not in self._kept:
            if self._ahead and self._ahead[0] == epoch:
                self._ahead[1].join()
            if epoch not in self._kept:
                self._compute(epoch)
            for old in [e for e in self._kept if e not in (epoch - 1, epoch, epoch + 1)]:
                del self._kept[old]
            if self._order.draws >= BACKGROUND and epoch + 1 not in self._kept:
                thread = Thread(target=self._compute, args=(epoch + 1,), daemon=True)
                self._ahead = (epoch + 1, thread)
                thread.start()
        return self._kept[epoch]

    def _compute(self, epoch: int) -> None:
        self._kept[epoch] = self._order(epoch)


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
        order: the order (a full shuffle by default); see `make_order`.

    Attributes:
        quarantine: windows that are left out, on every rank; part of the state.

    Raises:
        ValueError: an argument is out of range, or the world size does not divide the global batch.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        order: Order | None = None,
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
        order = order or FullShuffle(n, seed)
        if order.windows != n:
            raise ValueError(f"n={n}, but the order is of {order.windows} windows")
        self.n, self.global_batch, self.seed = n, global_batch, seed
        self.rank, self.world_size = rank, world_size
        self.draws = order.draws
        self.epoch = 0
        self.consumed = 0
        self.quarantine: frozenset[int] = frozenset()
        self._digest = _digest(order)
        self._order = _Epochs(order)

    def __len__(self) -> int:
        """Number of global batches left in the current epoch."""
        return -(-(self.draws - self.consumed) // self.global_batch)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        for step in self.steps():
            self.advance(step)
            yield step.windows.tolist()
            if step.end[0] != epoch:
                return

    def order(self, epoch: int) -> np.ndarray:
        """All draws of `epoch` in order, (draws,) int64."""
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

    def exclude(self, windows: Iterable[int]) -> None:
        """Puts windows in quarantine; every rank must be given the same ones at the same step.

        Raises:
            ShardError: there are too many for anything but a failure of the storage.
        """
        self.quarantine = self.quarantine.union(windows)
        if len(self.quarantine) > MAX_QUARANTINE:
            raise ShardError(
                f"{len(self.quarantine)} windows cannot be read; the quarantine is for at most "
                f"{MAX_QUARANTINE}: check the shards with `lola-ds verify`"
            )

    def weight(self, epoch: int, start: int) -> float:
        """Weight of each entry that counts in the global batch after `start` entries of `epoch`."""
        draws = self.order(epoch)[start : start + self.global_batch]
        dropped = self._dropped(draws % self.n).sum() if self.quarantine else 0
        return self.global_batch / max(len(draws) - dropped, 1)

    def _dropped(self, windows: np.ndarray) -> np.ndarray:
        return np.isin(windows, list(self.quarantine))

    def _step(self, epoch: int, start: int) -> Step:
        stop = min(start + self.global_batch, self.draws)
        draws = self.order(epoch)[start + self.rank : stop : self.world_size]
        windows = draws % self.n
        if padding := self.global_batch // self.world_size - len(draws):
            draws, windows = (np.pad(x, (0, padding), constant_values=-1) for x in (draws, windows))
        if self.quarantine:
            windows[self._dropped(windows)] = -1
        end = (epoch, stop) if stop < self.draws else (epoch + 1, 0)
        return Step(epoch, start, windows, draws, self.weight(epoch, start), end)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and entries consumed in it, with what fixes the order; under 1 KB."""
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "consumed": self.consumed,
            "n": self.n,
            "seed": self.seed,
        }
        if self._digest:
            state["order"] = self._digest
        if self.quarantine:
            state["quarantine"] = sorted(self.quarantine)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state, saved at any world size.

        Raises:
            ValueError: the state is of another number of windows, another seed or another order.
        """
        for name in ("n", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state was saved with {name}={state[name]}, the sampler has "
                    f"{name}={getattr(self, name)}; resume with the same data and seed"
                )
        if state.get("order", "") != self._digest:
            raise ValueError(
                "the state was saved with another order of windows; resume with the same shuffle "
                "budget and weights"
            )
        self.epoch, self.consumed = int(state["epoch"]), int(state["consumed"])
        self.quarantine = frozenset(state.get("quarantine", ()))


def _digest(order: Order) -> str:
    """Returns a hash of what fixes an order; empty for a full shuffle, fixed by n and seed."""
    if isinstance(order, FullShuffle):
        return ""
    return f"{checksum(dump_json([order.draws, dict(order.identity())])):016x}"
