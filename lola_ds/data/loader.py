"""Batches of windows, read ahead by threads.

Reading (preadv), hashing (xxhash) and copying (numpy) release the GIL, so threads share one
process, one set of open files and one memory. Each thread takes one run of a batch's samples and
reads them straight into their places; what a sample is depends on (seed, epoch, window) alone,
never on the thread that read it.

Batch memory is laid out (B, L, C, *S), one contiguous run per frame as in the shards, and shown as
(B, C, L, *S); it is used again once nothing refers to it. Half precision stays as it is stored
until the batch is on its device.
"""

from __future__ import annotations

import itertools
import threading
import warnings
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
from .format import STORED, ShardError
from .hashing import hash64, sample_seeds
from .sampler import ElasticSampler, Step
from .windows import ShardDataset

SPARE_BUFFERS = 8


class _Plan(NamedTuple):
    """A micro-batch to read, part of global batch `step` (if any), whose last part it may be."""

    windows: np.ndarray
    seeds: np.ndarray
    weights: np.ndarray
    step: Step | None = None
    last: bool = False


class _Pending(NamedTuple):
    """A micro-batch that is being read; `failed` collects windows that cannot be."""

    plan: _Plan
    batch: Batch
    failed: list[int]
    jobs: list[Future]


class _Buffers:
    """Batch memory, leased until the last tensor on it goes."""

    def __init__(self, dtype: str, pin_memory: bool) -> None:
        self.dtype, self.pin_memory = dtype, pin_memory
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE_BUFFERS)

    def lease(self, shape: Sequence[int]) -> tuple[np.ndarray, Tensor]:
        """An array of `shape` in the stored type, contents arbitrary, and a tensor on it."""
        kind = getattr(torch, self.dtype)
        if self.pin_memory:  # torch keeps pinned memory for the next use by itself
            tensor = torch.empty(tuple(shape), dtype=kind, pin_memory=True)
            bits = tensor.view(torch.uint16) if kind is torch.bfloat16 else tensor
            return bits.numpy(), tensor
        memory = self._spare.popleft() if self._spare else None
        if memory is None or memory.shape != tuple(shape):
            memory = np.empty(shape, STORED[self.dtype])
        lease = memory.view()  # the tensor's storage holds this view; its end is the lease's end
        weakref.finalize(lease, self._spare.append, memory).atexit = False
        return memory, torch.from_numpy(lease).view(kind)


class _Scratch(threading.local):
    """One window's memory for each thread, used again and again: it stays in the cache."""

    memory: np.ndarray | None = None

    def like(self, out: np.ndarray) -> np.ndarray:
        if self.memory is None or self.memory.shape != out.shape:
            self.memory = np.empty_like(out)
        return self.memory


class _Assembler:
    """Turns plans into batches, in order, some ahead.

    Arguments:
        dataset: the windows.
        augment: names of augmentations, see `lola_ds.augment`.
        workers: number of threads; 0 reads in the caller's.
        pin_memory: use page-locked memory.
        tolerant: collect windows that cannot be read instead of raising.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        augment: Sequence[str],
        workers: int,
        pin_memory: bool,
        tolerant: bool = False,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: must be >= 0")
        if augment and dataset.spec is None:
            raise ValueError(
                f"augment={list(augment)}: latents cannot be augmented; encode with repeat instead"
            )
        if dataset.spec is not None:
            check_augmentations(augment, dataset.spec, dataset.shape[1:])
        if "random_buoyancy_flip" in augment and dataset.dtype != "float32":
            raise ValueError(
                f"augment: random_buoyancy_flip computes with values and needs float32 shards, "
                f"these are {dataset.dtype}; remove it or write float32"
            )
        self.dataset, self.augment, self.tolerant = dataset, tuple(augment), tolerant
        self._buffers = _Buffers(dataset.dtype, pin_memory)
        self._scratch = _Scratch()
        self._threads = ThreadPoolExecutor(workers, "lola-reader") if workers else None
        self._workers = max(workers, 1)

    def stream(self, plans: Iterator[_Plan]) -> Iterator[_Pending]:
        """Yields each plan with its batch; an error in a thread is raised here, at its batch."""
        pending: deque[_Pending] = deque()
        try:
            for plan in plans:
                pending.append(self._start(plan))
                if len(pending) > self._ahead(len(plan.windows)):
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:
            wait([job for started in pending for job in started.jobs if not job.cancel()])

    def close(self) -> None:
        """Ends the threads, after what they are reading now."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _ahead(self, size: int) -> int:
        """Batches in flight beside the one awaited: two samples per thread, at least one batch."""
        return 1 + 2 * self._workers // size if self._threads else 0

    def _start(self, plan: _Plan) -> _Pending:
        dataset, size = self.dataset, len(plan.windows)
        memory, frames = self._buffers.lease((size, dataset.length, *dataset.shape))
        labels = np.zeros((size, dataset.labels.shape[1]), np.float32)
        batch = Batch(
            x=frames.transpose(1, 2),
            label=torch.from_numpy(labels),
            seed=torch.from_numpy(plan.seeds),
            weight=torch.from_numpy(plan.weights.astype(np.float32)),
            window=torch.from_numpy(plan.windows),
        )
        failed: list[int] = []
        if self._threads is None:
            self._fill(batch, plan, memory, labels, slice(0, size), failed)
            return _Pending(plan, batch, failed, [])
        bounds = [size * k // self._workers for k in range(self._workers + 1)]
        jobs = [
            self._threads.submit(self._fill, batch, plan, memory, labels, slice(a, b), failed)
            for a, b in itertools.pairwise(bounds)
            if a < b
        ]
        return _Pending(plan, batch, failed, jobs)

    def _finish(self, pending: _Pending) -> _Pending:
        for job in pending.jobs:
            job.result()
        return pending

    def _fill(
        self,
        batch: Batch,
        plan: _Plan,
        memory: np.ndarray,
        labels: np.ndarray,
        part: slice,
        failed: list[int],
    ) -> None:
        """Reads the samples of `part` into their places; holding `batch` keeps its memory."""
        windows, memory, labels = plan.windows[part], memory[part], labels[part]
        real = windows >= 0
        if not real.all():
            memory[~real] = 0
        labels[real] = self.dataset.labels[self.dataset.trajectories_of(windows[real])]
        if self.augment:
            seeds = plan.seeds[part]
            for i in np.flatnonzero(real):
                self._augmented(windows[i : i + 1], int(seeds[i]), memory[i], labels[i], failed)
            return
        edges = np.flatnonzero(np.diff(real, prepend=False, append=False)).tolist()
        for first, stop in zip(edges[::2], edges[1::2]):  # runs without padding
            self._read(windows[first:stop], memory[first:stop], failed)

    def _read(self, windows: np.ndarray, out: np.ndarray, failed: list[int]) -> None:
        """Reads windows; one that cannot be is zero and joins `failed`, if that is tolerated."""
        try:
            self.dataset.read_windows(windows, out)
        except ShardError as error:
            if not self.tolerant:
                raise
            if len(windows) == 1:
                warnings.warn(f"window {windows[0]} is left out: {error}", stacklevel=2)
                failed.append(int(windows[0]))
                out[:] = 0
                return
            for i in range(len(windows)):
                self._read(windows[i : i + 1], out[i : i + 1], failed)

    def _augmented(
        self,
        window: np.ndarray,
        seed: int,
        out: np.ndarray,
        label: np.ndarray,
        failed: list[int],
    ) -> None:
        """Reads one window into `out` (L, C, *S) under a random symmetry; adapts its label (D,)."""
        dataset = self.dataset
        assert dataset.spec is not None
        sides = label[len(dataset.scalars) :]
        codes = sides.reshape(-1, 2)
        # Its own stream of numbers: the objective draws from `seed` itself.
        symmetry = draw_symmetry(
            self.augment, dataset.spec, dataset.shape[1:], codes, hash64(seed, 1)
        )
        if symmetry.trivial:
            self._read(window, out[None], failed)
            return
        source = self._scratch.like(out)
        self._read(window, source[None], failed)
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
        failed: list[int] = []  # of this rank in the current step
        for plan, batch, found, _ in self._assembler.stream(self._plans()):
            assert plan.step is not None
            failed += found
            if failed or self.sampler.quarantine:
                self._drop(plan, plan.step, batch, failed)
            if plan.last:
                if self._assembler.tolerant:
                    self.sampler.exclude(self._agree(failed))
                    failed = []
                self.sampler.advance(plan.step)
            yield batch

    def _plans(self) -> Iterator[_Plan]:
        """Micro-batches from the sampler's state on."""
        for step in self.sampler.steps():
            seeds = sample_seeds(self.seed, step.epoch, step.draws)
            weights = np.where(step.windows < 0, 0.0, step.weight)
            for start in range(0, len(step.windows), self.micro_batch):
                part = slice(start, start + self.micro_batch)
                last = part.stop == len(step.windows)
                yield _Plan(step.windows[part], seeds[part], weights[part], step, last)

    def _drop(self, plan: _Plan, step: Step, batch: Batch, failed: Sequence[int]) -> None:
        """Makes padding of windows that fail now or are in quarantine since the plan was made.

        The other weights follow from the quarantine, which all ranks share, and so agree on all of
        them; in the step in which a window fails first, its share of the mean is lost.
        """
        dropped = np.isin(plan.windows, [*self.sampler.quarantine, *failed])
        kept = torch.from_numpy(~dropped & (plan.windows >= 0))
        batch.x[~kept] = 0
        batch.label[~kept] = 0
        batch.window[~kept] = -1
        batch.weight[:] = kept * self.sampler.weight(step.epoch, step.start)

    def _agree(self, failed: list[int]) -> list[int]:
        """The windows that failed on any rank in this step."""
        if self.sampler.world_size == 1:
            return failed
        gathered: list[list[int]] = [[] for _ in range(self.sampler.world_size)]
        torch.distributed.all_gather_object(gathered, failed)
        return [window for part in gathered for window in part]

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
        raise ValueError(f"the sampler orders {sampler.n} windows, the dataset has {len(dataset)}")
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
    assembler = _Assembler(dataset, augment, workers, pin_memory, tolerant=quarantine)
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
        for pending in assembler.stream(plans()):
            yield pending.batch
    finally:
        assembler.close()
