"""Timing in turns, and columns that name machine, versions and commit; used by all benchmarks."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of the fastest and the median call, and the peak GPU memory in bytes."""

    best: float
    median: float
    peak: int

    def row(self, samples: int, reference: Timing) -> dict[str, str]:
        """The columns of a table, for a call on `samples`; speedups refer to `reference`."""
        return {
            "samples_per_s": f"{samples / self.best:.4g}",
            "ms": f"{1e3 * self.best:.4g}",
            "median_ms": f"{1e3 * self.median:.4g}",
            "speedup": f"{reference.best / self.best:.2f}",
            "median_speedup": f"{reference.median / self.median:.2f}",
            "peak_gib": f"{self.peak / 2**30:.2f}" if self.peak else "",
        }


PAUSE = 4_000_000
"""Cycles (about 2 ms) for which a GPU waits while the timed kernels are launched."""


def alternate(
    runs: Sequence[Callable[[], Any]], rounds: int, device: torch.device, launched: bool = True
) -> list[Timing]:
    """Times functions in turns, after two calls of each.

    Arguments:
        runs: The functions.
        rounds: The number of timed calls of each function.
        device: The device that they run on. Peak memory of a GPU is relative to what was allocated
            before the call.
        launched: Whether the time to launch kernels counts. Without it, the GPU's own time is
            measured, as within a longer program that keeps the GPU busy.
    """
    gpu = device.type == "cuda"
    clock = _device_seconds if gpu and not launched else _seconds
    seconds: list[list[float]] = [[] for _ in runs]
    peaks = [0] * len(runs)
    for number in range(rounds + 2):
        for i, run in enumerate(runs):
            held = 0
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            taken = clock(run)
            if gpu:
                peaks[i] = torch.cuda.max_memory_allocated() - held
            if number >= 2:
                seconds[i].append(taken)
    return [Timing(min(s), statistics.median(s), p) for s, p in zip(seconds, peaks)]


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _device_seconds(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(PAUSE)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def describe_machine(packages: Sequence[str]) -> dict[str, str]:
    """The columns that name the device, machine, load, versions of `packages` and commit."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} -")
    return {
        "device": device_name(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": f"python {platform.python_version()}; " + "; ".join(versions),
        "commit": current_commit(),
    }


def current_commit() -> str:
    """The commit of the checkout, or an empty string outside of one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return done.stdout.strip()


def device_name() -> str:
    """The name of the GPU, or else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows with equal columns as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
