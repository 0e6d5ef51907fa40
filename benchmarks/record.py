"""What benchmarks share: timing in turns, and the machine, versions and commit beside figures."""

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
    """Seconds of a call, the fastest and the median, and the peak of a GPU's memory in bytes."""

    best: float
    median: float
    peak: int

    def row(self, samples: int, reference: Timing) -> dict[str, str]:
        """Its columns, for a call that handles `samples`; ratios to another timing."""
        return {
            "samples_per_s": f"{samples / self.best:.4g}",
            "ms": f"{1e3 * self.best:.4g}",
            "median_ms": f"{1e3 * self.median:.4g}",
            "speedup": f"{reference.best / self.best:.2f}",
            "median_speedup": f"{reference.median / self.median:.2f}",
            "peak_gib": f"{self.peak / 2**30:.2f}" if self.peak else "",
        }


def alternate(runs: Sequence[Callable[[], Any]], rounds: int, device: torch.device) -> list[Timing]:
    """Times functions in turns, after two calls of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    peaks = [0] * len(runs)
    for number in range(rounds + 2):
        for i, run in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
                peaks[i] = torch.cuda.max_memory_allocated()
            if number >= 2:
                seconds[i].append(time.perf_counter() - begin)
    return [Timing(min(s), statistics.median(s), p) for s, p in zip(seconds, peaks)]


def describe_machine(packages: Sequence[str]) -> dict[str, str]:
    """Device, machine, load, versions of `packages` and commit; columns of a table."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} -")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "device": device_name(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": f"python {platform.python_version()}; " + "; ".join(versions),
        "commit": commit.stdout.strip(),
    }


def device_name() -> str:
    """The GPU's name, or the processor's."""
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
