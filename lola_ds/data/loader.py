"""Batches of windows, read ahead by threads.

Reading (preadv), hashing (xxhash) and copying (numpy) release the GIL, so threads share one
process, one set of open files and one memory. Each sample is read straight into its place in the
batch; what a sample is depends on (seed, epoch, window) alone, never on the thread that read it.

Batch memory is laid out (B, L, C, *S), one contiguous run per frame as in the shards, and shown as
(B, C, L, *S); it is used again once nothing refers to it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..augment import check_augmentations, draw_symmetry
from .batch import Batch
from .hashing import hash64, sample_seeds
from .sampler import ElasticSampler, Step
from .windows import ShardDataset

SPARE_BUFFERS = 8


class _Plan(NamedTuple):
    """A micro-batch to read; `step` is the global batch that it completes, if it does."""

    windows: np.ndarray
    seeds: np.ndarray
    weights: np.ndarray
    step: Step | None = None


class _Buffers:
    """Batch memory, leased until the last tensor on it goes."""

    def __init__(self, pin_memory: bool) -> None:
        self.pin_memory = pin_memory
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE_BUFFERS)

    def lease(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor of `shape`, contents arbitrary."""
        if self.pin_memory:  # torch keeps pinned memory for the next use by itself
            return torch.empty(tuple(shape), pin_memory=True)
        memory = self._spare.popleft() if self._spare else np.empty(shape, np.float32)
        if memory.shape != tuple(shape):
            memory = np.empty(shape, np.float32)
        lease = memory.view()  # the tensor's storage holds this view; its end is the lease's end
        weakref.finalize(lease, self._spare.append, memory).atexit = False
        return torch.from_numpy(lease)


class _Assembler:
    """Turns plans into batches, in order, some ahead.

    Arguments:
        dataset: the windows.
        augment: names of augmentations, see `lola_ds.augment`.
        workers: number of threads; 0 reads in the caller's.
        pin_memory: use page-locked memory.
    """

    def __init__(
        self, dataset: ShardDataset, augment: Sequence[str], workers: int, pin_memory: bool
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: must be >= 0")
        if augment and dataset.spec is None:
            raise ValueError(
                f"augment={list(augment)}: latents cannot be augmented; encode with repeat instead"
            )
        if dataset.spec is not None:
            check_augmentations(augment, dataset.spec, dataset.shape[1:])
        self.dataset, self.augment = dataset, tuple(augment)
        self._buffers = _Buffers(pin_memory)
        self._threads = ThreadPoolExecutor(workers, "lola-reader") if workers else None
        self._workers = max(workers, 1)

    def stream(self, plans: Iterator[_Plan]) -> Iterator[tuple[_Plan, Batch]]:
        """Yields each plan with its batch; an error in a thread is raised here, at its batch."""
        pending: deque[tuple[_Plan, Batch, list[Future]]] = deque()
        try:
            for plan in plans:
                pending.append((plan, *self._start(plan)))
                if len(pending) > self._ahead(len(plan.windows)):
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())
        finally:
            jobs = [job for _, _, started in pending for job in started]
            for job in jobs:
                job.cancel()
            wait(jobs)

    def close(self) -> None:
        """Ends the threads, after what they are reading now."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _ahead(self, size: int) -> int:
        """Batches in flight beside the one awaited: two samples per thread, at least one batch."""
        return 1 + 2 * self._workers // size if self._threads else 0

    def _start(self, plan: _Plan) -> tuple[Batch, list[Future]]:
        dataset = self.dataset
        frames = self._buffers.lease((len(plan.windows), dataset.length, *dataset.shape))
        batch = Batch(
            x=frames.transpose(1, 2),
            label=torch.zeros(len(plan.windows), dataset.labels.shape[1]),
            seed=torch.from_numpy(plan.seeds),
            weight=torch.from_numpy(plan.weights.astype(np.float32)),
            window=torch.from_numpy(plan.windows),
        )
        if self._threads is None:
            self._fill(frames, batch, range(len(batch)))
            return batch, []
        parts = (range(first, len(batch), self._workers) for first in range(self._workers))
        return batch, [self._threads.submit(self._fill, frames, batch, part) for part in parts]

    def _finish(self, plan: _Plan, batch: Batch, jobs: list[Future]) -> tuple[_Plan, Batch]:
        wait(jobs)
        for job in jobs:
            job.result()
        return plan, batch

    def _fill(self, frames: Tensor, batch: Batch, samples: Sequence[int]) -> None:
        """Reads samples into their places; `frames` is held for as long as this runs."""
        memory, labels = frames.numpy(), batch.label.numpy()
        for i in samples:
            window, seed = int(batch.window[i]), int(batch.seed[i])
            if window < 0:
                memory[i] = 0
            else:
                self._read(window, seed, memory[i], labels[i])

    def _read(self, window: int, seed: int, out: np.ndarray, label: np.ndarray) -> None:
        """Reads one window into `out` (L, C, *S) and its label into `label` (D,)."""
        dataset = self.dataset
        trajectory, start = dataset.locate(window)
        label[:] = dataset.labels[trajectory]
        if not self.augment or dataset.spec is None:
            dataset.read_window(trajectory, start, out)
            return
        source = np.empty_like(out)
        dataset.read_window(trajectory, start, source)
        sides = label[len(dataset.scalars) :]
        codes = sides.reshape(-1, 2)
        sizes = dataset.shape[1:]
        # Its own stream of numbers: the objective draws from `seed` itself.
        symmetry = draw_symmetry(self.augment, dataset.spec, sizes, codes, hash64(seed, 1))
        symmetry.window(source.swapaxes(0, 1), dataset.spec, out=out.swapaxes(0, 1))
        sides[:] = symmetry.codes(codes).ravel()


class Loader:
    """Endless batches over epochs, resumable; see `build_loader`."""

    def __init__(
        self, assembler: _Assembler, sampler: ElasticSampler, micro_batch: int, seed: int
    ) -> None:
        self.sampler = sampler
        self.micro_batch = micro_batch
        self.seed = seed
        self._assembler = assembler

    def __iter__(self) -> Iterator[Batch]:
        for plan, batch in self._assembler.stream(self._plans()):
            if plan.step is not None:
                self.sampler.advance(plan.step)
            yield batch

    def _plans(self) -> Iterator[_Plan]:
        """Micro-batches from the sampler's state on."""
        for step in self.sampler.steps():
            seeds = sample_seeds(self.seed, step.epoch, step.windows)
            weights = np.where(step.windows < 0, 0.0, step.weight)
            for start in range(0, len(step.windows), self.micro_batch):
                part = slice(start, start + self.micro_batch)
                last = part.stop == len(step.windows)
                plan = _Plan(step.windows[part], seeds[part], weights[part])
                yield plan._replace(step=step) if last else plan

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

    Raises:
        ValueError: the sampler is for another number of windows; micro_batch does not divide the
            rank's part; an unknown or impossible augmentation.
        ShardError: when iterating: bytes are not those that were written.
    """
    if sampler.n != len(dataset):
        raise ValueError(f"the sampler orders {sampler.n} windows, the dataset has {len(dataset)}")
    part = sampler.global_batch // sampler.world_size
    if micro_batch is None:
        micro_batch = part
    if micro_batch < 1 or part % micro_batch:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide the {part} samples of a rank "
            f"(global_batch={sampler.global_batch} over {sampler.world_size}); choose a divisor"
        )
    assembler = _Assembler(dataset, augment, workers, pin_memory)
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
    assembler = _Assembler(dataset, (), workers, pin_memory=False)

    def plans() -> Iterator[_Plan]:
        for table in range(batches):
            start = table * batch_size * world_size
            mine = slice(start + rank, start + batch_size * world_size, world_size)
            yield _Plan(padded[mine], seeds[mine], weights[mine])

    try:
        for _, batch in assembler.stream(plans()):
            yield batch
    finally:
        assembler.close()
