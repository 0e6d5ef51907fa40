"""Field statistics of The Well's HDF5 after the transform, streaming and parallel over files.

Means and deviations are those of `lola_ds.data.statistics.Moments`: blocks are reduced in float64
and merged by the update of Chan et al., so that neither a large mean nor a long dataset costs
digits.
Quantiles come from a histogram over the leading bits of the numbers: a float32 read as an integer
orders as the number does, so its first 18 bits (sign, exponent, 9 of the fraction) are a bin, at
most 2⁻⁹ of the number wide. Within a bin a quantile is interpolated; so it is off by at most
2⁻⁹ ≈ 0.2 % of its own size, for any distribution, in one pass, without knowing the range, and
histograms add up exactly. (Numbers below 1.2e-38, which float32 holds with fewer digits, count as
zero.) What comes out does not depend on the number of workers.

Symbols: C channels, *S spatial axes, T frames of a block.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_prep.well import WellFile
from lola_ds.data.statistics import Moments
from lola_ds.fields import TRANSFORMS

__all__ = [
    "BITS",
    "BLOCK_BYTES",
    "FieldStatistics",
    "Histogram",
    "gather_statistics",
]

#: Leading bits of a float32 that tell the bins of a histogram apart.
BITS = 18

#: Bytes of the fields that are read at once.
BLOCK_BYTES = 64_000_000


class Histogram:
    """Counts of C channels' values in bins of the leading bits; `counts` is (C, 2^BITS) int64."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    @classmethod
    def empty(cls, channels: int) -> Histogram:
        """The histogram of no values, the identity of `merge`."""
        return cls(np.zeros((channels, 2**BITS), np.int64))

    @classmethod
    def of(cls, x: np.ndarray) -> Histogram:
        """The histogram of x (T, C, N) float32; values that are not finite are left out."""
        histogram = cls.empty(x.shape[1])
        for channel, counts in enumerate(histogram.counts):
            values = x[:, channel]
            finite = np.isfinite(values)
            bins = _bins(values if finite.all() else values[finite])
            counts += np.bincount(bins.reshape(-1), minlength=2**BITS)
        return histogram

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values together."""
        return Histogram(self.counts + other.counts)

    def quantile(self, level: float) -> np.ndarray:
        """The values below which a share `level` lies, per channel (NaN where there are none)."""
        return np.array([_quantile(counts, level) for counts in self.counts])


def _bins(x: np.ndarray) -> np.ndarray:
    """The bins of float32 values, increasing with the value."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32)
    ordered = np.where(bits < 0, ~bits, bits ^ np.int32(-(2**31))).view(np.uint32)
    return (ordered >> np.uint32(32 - BITS)).astype(np.int64)


def _edge(number: int) -> float:
    """The lower edge of a bin: the inverse of `_bins`."""
    ordered = number << (32 - BITS)
    bits = ordered ^ 0x80000000 if ordered & 0x80000000 else ~ordered & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _quantile(counts: np.ndarray, level: float) -> float:
    total = counts.sum()
    if not total:
        return float("nan")
    below = np.cumsum(counts)
    rank = level * total
    number = min(int(np.searchsorted(below, rank)), int(np.searchsorted(below, total)))
    share = (rank - (below[number] - counts[number])) / counts[number] if counts[number] else 0.0
    low, high = _edge(number), _edge(number + 1)
    if max(abs(low), abs(high)) <= np.finfo(np.float32).tiny:
        return 0.0
    return low + share * (high - low) if np.isfinite(high) else low


@dataclass
class FieldStatistics:
    """Moments and histograms of the same values, and how many were left out."""

    moments: Moments
    histogram: Histogram
    nonfinite: int = 0

    @classmethod
    def empty(cls, channels: int) -> FieldStatistics:
        """Statistics of no values, the identity of `merge`."""
        return cls(Moments.empty(channels), Histogram.empty(channels))

    @classmethod
    def of(cls, x: np.ndarray) -> FieldStatistics:
        """Statistics of x (T, C, N) float32."""
        moments = Moments.of(x)
        return cls(moments, Histogram.of(x), x.size - int(moments.count.sum()))

    def merge(self, other: FieldStatistics) -> FieldStatistics:
        """Statistics of both sets of values together."""
        return FieldStatistics(
            self.moments.merge(other.moments),
            self.histogram.merge(other.histogram),
            self.nonfinite + other.nonfinite,
        )

    def summary(self, levels: Sequence[float]) -> dict[str, list[float]]:
        """Per channel: count, mean, std, min, max, and a quantile per level, `0.25` by its name.

        Quantiles are kept between the exact extremes.
        """
        moments = self.moments.summary()
        low, high = self.moments.low, self.moments.high
        table = {name: moments[name] for name in ("count", "mean", "std", "min", "max")}
        for level in levels:
            table[f"{level:g}"] = np.clip(self.histogram.quantile(level), low, high).tolist()
        return table


def gather_statistics(
    paths: Sequence[Path],
    fields: Sequence[str],
    transform: Mapping[int, str] | None = None,
    *,
    workers: int | None = None,
    allow_nan: bool = False,
    show_progress: bool = True,
) -> FieldStatistics:
    """Statistics of all values in some files, after the transform.

    Arguments:
        paths: files of The Well with the same fields, as `check_files` checks.
        fields: the names of their channels, for messages.
        transform: the name of the transform of some channels, by index (`lola_ds.fields`).
        workers: processes; by default one per core, at most one per file.
        allow_nan: leave out values that are not finite, and count them, instead of refusing them.
        show_progress: whether to draw a progress bar, in files.

    Raises:
        ValueError: a transform is unknown, or a value is not finite (before or after the
            transform); names file, trajectory, steps and field.
        OSError: a file cannot be read.
    """
    transform = {int(channel): name for channel, name in dict(transform or {}).items()}
    for channel, name in transform.items():
        if name not in TRANSFORMS or not 0 <= channel < len(fields):
            raise ValueError(
                f"transform {{{channel}: {name}}}: expected a channel below {len(fields)} and one "
                f"of {', '.join(TRANSFORMS)}"
            )
    work = partial(_of_file, fields=tuple(fields), transform=transform, allow_nan=allow_nan)
    workers = min(len(paths), workers or os.cpu_count() or 1)
    total = FieldStatistics.empty(len(fields))
    bar = tqdm(total=len(paths), unit="file", disable=not show_progress, leave=False)
    with _mapping(workers) as each, bar:
        for part in each(work, paths):
            total = total.merge(part)
            bar.update()
    return total


@contextmanager
def _mapping(workers: int) -> Iterator:
    """`map`, in order, here or in processes."""
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _of_file(
    path: Path, fields: Sequence[str], transform: Mapping[int, str], allow_nan: bool
) -> FieldStatistics:
    """Statistics of one file."""
    total = FieldStatistics.empty(len(fields))
    with WellFile(path) as file:
        frame = 4 * file.channels * int(np.prod(file.shape))
        block = max(1, BLOCK_BYTES // frame)
        for trajectory in range(file.trajectories):
            for start in range(0, file.steps, block):
                x = file.read(trajectory, slice(start, start + block))
                x = _transformed(x, transform).reshape(*x.shape[:2], -1)
                part = FieldStatistics.of(x)
                if part.nonfinite and not allow_nan:
                    raise ValueError(_complaint(path, trajectory, start, x, fields, transform))
                total = total.merge(part)
    return total


def _transformed(x: np.ndarray, transform: Mapping[int, str]) -> np.ndarray:
    """x (T, C, *S) with its channels transformed in place, in float32, as training does it."""
    for channel, name in transform.items():
        forward, _ = TRANSFORMS[name]
        x[:, channel] = forward(torch.from_numpy(x[:, channel])).numpy()
    return x


def _complaint(
    path: Path,
    trajectory: int,
    start: int,
    x: np.ndarray,
    fields: Sequence[str],
    transform: Mapping[int, str],
) -> str:
    step, channel, _ = np.argwhere(~np.isfinite(x))[0]
    after = f" after {transform[channel]}" if channel in transform else ""
    return (
        f"{path}: trajectory {trajectory}, step {start + step}, field {fields[channel]} is NaN or "
        f"infinite{after}; --allow-nan leaves such values out"
    )
