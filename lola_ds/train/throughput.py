"""How fast a training goes, what it waits for, and how much memory it takes.

Model FLOP/s utilisation (MFU) is the work of the network's forward and backward pass, counted from
shapes without recomputation, over the vendor's dense bfloat16 peak (Chowdhery et al., 2022,
https://arxiv.org/abs/2204.02311, appendix B).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from lola_ds.hardware import GIB, peak_tflops


class Throughput:
    """Times steps and what they wait for.

    Arguments:
        device: where the rank computes.
        world_size: the number of ranks.
        flops: floating-point operations of a sample; 0 when unknown.
        tokens: tokens of a sample; 0 when unknown.
    """

    def __init__(
        self, device: torch.device, world_size: int = 1, flops: float = 0.0, tokens: int = 0
    ) -> None:
        self.device = device
        self.world_size = world_size
        self.flops = flops
        self.tokens = tokens
        self._process = psutil.Process()
        self._steps: list[float] = []
        self._waited = 0.0
        self._samples = 0

    @contextmanager
    def step(self, samples: int) -> Iterator[None]:
        """Times one optimizer step of `samples` samples over all ranks."""
        start = time.perf_counter()
        yield
        self._steps.append(time.perf_counter() - start)
        self._samples += samples

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """The numbers since the last lap: rates, seconds, GiB; the share of time spent waiting."""
        elapsed = sum(self._steps)
        rate = self._samples / elapsed
        quantiles = torch.tensor(self._steps).quantile(torch.tensor([0.5, 0.9, 0.99])).tolist()
        values = {"samples_per_second": rate, "data_wait": self._waited / elapsed}
        values |= {f"step_seconds_p{p}": q for p, q in zip((50, 90, 99), quantiles)}
        if self.tokens:
            values["tokens_per_second"] = rate * self.tokens
        if self.flops:
            values |= self._utilisation(rate * self.flops / self.world_size / 1e12)
        self._steps.clear()
        self._waited, self._samples = 0.0, 0
        return values | self._memory()

    def _utilisation(self, tflops: float) -> dict[str, float]:
        values = {"tflops_per_rank": tflops}
        if self.device.type == "cuda":
            peak = peak_tflops(torch.cuda.get_device_name(self.device))
            if peak is not None:
                values["mfu"] = tflops / peak
        return values

    def _memory(self) -> dict[str, float]:
        taken = self._process.memory_info()
        shared = getattr(taken, "shared", 0)  # files in memory, shards among them
        values = {"memory_host": (taken.rss - shared) / GIB}
        if self.device.type == "cuda":
            values["memory_allocated"] = torch.cuda.max_memory_allocated(self.device) / GIB
            values["memory_reserved"] = torch.cuda.max_memory_reserved(self.device) / GIB
        return values
