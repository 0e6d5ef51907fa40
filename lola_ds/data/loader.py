"""Loaders: the sampler's steps as batches, endless and resumable, or each window once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lola_ds.data.assembler import Assembler, BatchRequest
from lola_ds.data.batch import Batch
from lola_ds.data.sampler import ElasticSampler, Step
from lola_ds.data.windows import ShardDataset
from lola_ds.distributed import gather_objects
from lola_ds.hashing import sample_seeds

__all__ = ["Loader", "build_loader", "evaluation_batches"]


class Loader:
    """Endless batches over epochs, resumable; see `build_loader`."""

    def __init__(
        self, assembler: Assembler, sampler: ElasticSampler, micro_batch: int, seed: int
    ) -> None:
        self.sampler = sampler
        self.micro_batch = micro_batch
        self.seed = seed
        self._assembler = assembler

    def __iter__(self) -> Iterator[Batch]:
        failed: list[int] = []  # of this rank in the current step
        for request, batch, found in self._assembler.stream(self._requests()):
            assert request.step is not None
            failed += found
            if failed or self.sampler.quarantine:
                self._drop(request, request.step, batch, failed)
            if request.last:
                if self._assembler.tolerant:
                    self.sampler.exclude(self._agree(failed))
                    failed = []
                self.sampler.advance(request.step)
            yield batch
            del batch  # so that its memory can be reused

    def _requests(self) -> Iterator[BatchRequest]:
        """Micro-batches from the sampler's state on."""
        for step in self.sampler.steps():
            seeds = sample_seeds(self.seed, step.epoch, step.draws)
            weights = np.where(step.windows < 0, 0.0, step.weight)
            for start in range(0, len(step.windows), self.micro_batch):
                part = slice(start, start + self.micro_batch)
                last = part.stop == len(step.windows)
                yield BatchRequest(step.windows[part], seeds[part], weights[part], step, last)

    def _drop(self, request: BatchRequest, step: Step, batch: Batch, failed: Sequence[int]) -> None:
        """Makes padding of windows that fail now or are in quarantine since the request was made.

        The other weights follow from the quarantine, which all ranks share, and so agree on all of
        them; in the step in which a window fails first, its share of the mean is lost.
        """
        dropped = np.isin(request.windows, [*self.sampler.quarantine, *failed])
        kept = torch.from_numpy(~dropped & (request.windows >= 0))
        batch.x[~kept] = 0
        batch.label[~kept] = 0
        batch.window[~kept] = -1
        batch.weight[:] = kept * self.sampler.weight(step.epoch, step.start)

    def _agree(self, failed: list[int]) -> list[int]:
        """The windows that failed on any process in this step; several may read the same."""
        return [window for part in gather_objects(failed) for window in part]

    def state_dict(self) -> dict[str, Any]:
        """The position after the last complete global batch that was yielded.

        Batches read ahead do not count, nor do the micro-batches of a step that is not complete:
        its gradients would be lost, so a resumed run takes the whole step again.
        """
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state, saved at any world size; takes effect at the next `iter`."""
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Ends the threads."""
        self._assembler.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def build_loader(
    dataset: ShardDataset,
    sampler: ElasticSampler,
    *,
    micro_batch: int | None = None,
    augment: Sequence[str] = (),
    workers: int = 2,
    pin_memory: bool = False,
    seed: int | None = None,
    quarantine: bool = False,
) -> Loader:
    """A loader of training batches.

        with build_loader(windows, sampler, micro_batch=8, augment=["random_axis_flip"]) as loader:
            for batch in loader:                                                    # endless
                ...

    Arguments:
        dataset: the windows.
        sampler: their order and this rank's part; its state is the loader's.
        micro_batch: samples per batch; the rank's part of a global batch comes in consecutive
            micro-batches (in one, by default).
        augment: names of augmentations, see `lola_ds.augment`.
        workers: number of reading threads; 0 reads when a batch is asked for.
        pin_memory: use page-locked memory, for copies to a GPU.
        seed: the run's seed (the sampler's by default).
        quarantine: leave out windows that cannot be read, with a warning, instead of raising. They
            are padding from then on, on every rank, and part of the state. Ranks agree on them
            through `torch.distributed` at every step, so all of them must iterate alike.

    Raises:
        ValueError: the sampler is for another number of windows; micro_batch does not divide the
            rank's part; an unknown or impossible augmentation.
        ShardError: when iterating: bytes are not those that were written.
    """
    if sampler.n != len(dataset):
        raise ValueError(f"the sampler is for {sampler.n} windows, the dataset has {len(dataset)}")
    part = sampler.global_batch // sampler.world_size
    if micro_batch is None:
        micro_batch = part
    if micro_batch < 1 or part % micro_batch:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide the {part} samples of a rank "
            f"(global_batch={sampler.global_batch} over {sampler.world_size}); choose a divisor"
        )
    if quarantine and sampler.world_size > 1 and not torch.distributed.is_initialized():
        raise ValueError(
            f"quarantine=True with world_size={sampler.world_size} needs torch.distributed; "
            "initialise its process group first"
        )
    assembler = Assembler(dataset, augment, workers, pin_memory, tolerant=quarantine)
    return Loader(assembler, sampler, micro_batch, sampler.seed if seed is None else seed)


def evaluation_batches(
    dataset: ShardDataset,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    windows: Sequence[int] | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """This rank's batches of an evaluation: each window once, in order, the same seeds every time.

    Every rank has the same number of batches of the same size; padding has weight 0, and the other
    weights are such that the mean over all batches of all ranks of mean(weight * loss) is the mean
    loss over the windows.

    Arguments:
        dataset: the windows.
        batch_size: samples per batch of one rank.
        rank, world_size: this rank, and how many there are.
        windows: which windows (all by default).
        seed: fixes the samples' seeds.
        workers: number of reading threads.

    Raises:
        ValueError: batch_size is not positive, or there are no windows.
    """
    ids = np.arange(len(dataset)) if windows is None else np.asarray(windows, np.int64)
    if batch_size < 1 or not len(ids):
        raise ValueError(f"batch_size={batch_size} over {len(ids)} windows: both must be >= 1")
    batches = -(-len(ids) // (batch_size * world_size))
    padded = np.full(batches * batch_size * world_size, -1, np.int64)
    padded[: len(ids)] = ids
    weights = np.where(padded < 0, 0.0, len(padded) / len(ids))
    seeds = sample_seeds(seed, 0, padded)
    assembler = Assembler(dataset, (), workers, pin_memory=False)

    def requests() -> Iterator[BatchRequest]:
        for table in range(batches):
            start = table * batch_size * world_size
            mine = slice(start + rank, start + batch_size * world_size, world_size)
            yield BatchRequest(padded[mine], seeds[mine], weights[mine])

    try:
        for _, batch, _ in assembler.stream(requests()):
            yield batch
    finally:
        assembler.close()
