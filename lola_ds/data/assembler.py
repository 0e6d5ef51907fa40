"""Reading of batches: threads read and augment windows, some batches ahead.

Reading, hashing and copying release the GIL, so threads share one process, one set of open files
and one memory. Each thread takes one run of a batch's samples and reads them straight into their
rows; a sample depends on (seed, epoch, window) alone, never on the thread that read it. Small
batches are read several at a time, as the threads' Python code competes with the training's for the
GIL.

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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lola_ds.augment import check_augmentations, draw_symmetry
from lola_ds.data.batch import Batch
from lola_ds.data.format import STORED, ShardError
from lola_ds.data.sampler import Step
from lola_ds.data.windows import ShardDataset
from lola_ds.hashing import hash64

__all__ = ["Assembler", "BatchRequest", "Pending"]

SPARE_BUFFERS = 8
SCRATCH_BYTES = 1 << 22  # windows that one thread reads before it augments them
GROUP, GROUP_BYTES = 8, 1 << 22  # most batches, and most bytes, that are read at a time


class BatchRequest(NamedTuple):
    """A micro-batch to read, part of global batch `step` (if any), whose last part it may be."""

    windows: np.ndarray
    seeds: np.ndarray
    weights: np.ndarray
    step: Step | None = None
    last: bool = False


class Pending(NamedTuple):
    """Micro-batches that are read together; `failed` collects unreadable windows."""

    requests: list[BatchRequest]
    batch: Batch
    failed: list[int]
    jobs: list[Future]


class _Buffers:
    """Batch memory, leased until the last tensor that uses it is freed."""

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
    """Memory for a few windows per thread, reused so that it stays in the processor's cache."""

    memory: np.ndarray | None = None

    def rows(self, count: int, like: np.ndarray) -> np.ndarray:
        """Memory of `count` rows like those of another array."""
        shape = (count, *like.shape[1:])
        if self.memory is None or self.memory.shape != shape:
            self.memory = np.empty(shape, like.dtype)
        return self.memory


class Assembler:
    """Turns requests into batches, in order, some ahead.

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

    def stream(
        self, requests: Iterator[BatchRequest]
    ) -> Iterator[tuple[BatchRequest, Batch, list[int]]]:
        """Yields each request, its batch, and its windows that cannot be read.

        An error in a thread is raised here, at its batch.
        """
        pending: deque[Pending] = deque()
        try:
            for first in requests:
                group = [first, *itertools.islice(requests, self._with(len(first.windows)))]
                pending.append(self._start(group))
                if len(pending) > self._ahead(len(first.windows) * len(group)):
                    yield from self._finish(pending.popleft())
            while pending:
                yield from self._finish(pending.popleft())
        finally:
            wait([job for started in pending for job in started.jobs if not job.cancel()])

    def close(self) -> None:
        """Ends the threads once they have finished their current reads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _with(self, size: int) -> int:
        """How many batches of `size` samples are read with one."""
        fit = GROUP_BYTES // (size * self.dataset.window_bytes)
        return min(max(fit, 1), GROUP) - 1 if self._threads else 0

    def _ahead(self, size: int) -> int:
        """Groups of `size` samples in flight beside the one awaited: two samples per thread."""
        return 1 + 2 * self._workers // size if self._threads else 0

    def _start(self, requests: list[BatchRequest]) -> Pending:
        windows, seeds, weights = (np.concatenate(of) for of in list(zip(*requests))[:3])
        request, dataset, size = BatchRequest(windows, seeds, weights), self.dataset, len(windows)
        memory, frames = self._buffers.lease((size, dataset.length, *dataset.shape))
        labels = np.zeros((size, dataset.labels.shape[1]), np.float32)
        batch = Batch(
            x=frames.transpose(1, 2),
            label=torch.from_numpy(labels),
            seed=torch.from_numpy(request.seeds),
            weight=torch.from_numpy(request.weights.astype(np.float32)),
            window=torch.from_numpy(request.windows),
        )
        failed: list[int] = []
        if self._threads is None:
            self._fill(batch, request, memory, labels, slice(0, size), failed)
            return Pending(requests, batch, failed, [])
        bounds = [size * k // self._workers for k in range(self._workers + 1)]
        jobs = [
            self._threads.submit(self._fill, batch, request, memory, labels, slice(a, b), failed)
            for a, b in itertools.pairwise(bounds)
            if a < b
        ]
        return Pending(requests, batch, failed, jobs)

    def _finish(self, pending: Pending) -> Iterator[tuple[BatchRequest, Batch, list[int]]]:
        try:
            for job in pending.jobs:
                job.result()
        except ShardError:
            if len(pending.requests) == 1:
                raise
            for request in pending.requests:  # one by one, up to the unreadable one
                yield from self._finish(self._start([request]))
            return
        values, start = vars(pending.batch).values(), 0
        for request in pending.requests:
            stop = start + len(request.windows)
            failed = [window for window in pending.failed if window in request.windows]
            yield request, Batch(*(value[start:stop] for value in values)), failed
            start = stop

    def _fill(
        self,
        batch: Batch,
        request: BatchRequest,
        memory: np.ndarray,
        labels: np.ndarray,
        part: slice,
        failed: list[int],
    ) -> None:
        """Reads the samples of `part` into the batch; the reference to `batch` keeps its memory."""
        windows, memory, labels = request.windows[part], memory[part], labels[part]
        real = windows >= 0
        runs = [slice(0, len(windows))]
        if not real.all():
            memory[~real] = 0
            ends = np.flatnonzero(np.diff(real, prepend=False, append=False))
            runs = [slice(a, b) for a, b in ends.reshape(-1, 2)]  # none of it padding
        for run in runs:
            trajectories = self.dataset.trajectories_of(windows[run])
            labels[run] = self.dataset.labels[trajectories]
            if self.augment:
                self._augmented(
                    windows[run], request.seeds[part][run], memory[run], labels[run], failed
                )
            else:
                self._read(windows[run], memory[run], failed)

    def _read(self, windows: np.ndarray, out: np.ndarray, failed: list[int]) -> None:
        """Reads windows; if tolerant, unreadable ones are zeroed and appended to `failed`."""
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
        windows: np.ndarray,
        seeds: np.ndarray,
        out: np.ndarray,
        labels: np.ndarray,
        failed: list[int],
    ) -> None:
        """Reads windows into `out` (n, L, C, *S) under random symmetries; adapts labels (n, D)."""
        dataset = self.dataset
        assert dataset.spec is not None
        at_once = max(SCRATCH_BYTES // dataset.window_bytes, 1)
        for start in range(0, len(windows), at_once):
            some = windows[start : start + at_once]
            sources = self._scratch.rows(at_once, out)[: len(some)]
            self._read(some, sources, failed)
            for i, source in enumerate(sources, start):
                sides = labels[i, len(dataset.scalars) :]
                codes = sides.reshape(-1, 2)
                # Its own stream of numbers: the objective draws from the seed itself.
                seed = hash64(int(seeds[i]), 1)
                symmetry = draw_symmetry(self.augment, dataset.spec, dataset.shape[1:], codes, seed)
                symmetry.window(source.swapaxes(0, 1), dataset.spec, out=out[i].swapaxes(0, 1))
                sides[:] = symmetry.codes(codes).ravel()
