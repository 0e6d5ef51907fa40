"""Streaming moments per channel: count, mean, sum of squared deviations, extremes, rounding error.

Blocks are reduced in float64 in two passes, then merged by the parallel update of Chan et al., so
that neither a large mean nor a long dataset loses digits. Merging in a fixed order gives the same
bits whatever was interrupted in between.

References:
    Chan, Golub & LeVeque (1983), Algorithms for Computing the Sample Variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Moments of C channels; every attribute is a (C,) float64 array.

    Attributes:
        count: number of finite values.
        mean, squares: their mean, and the sum of squared deviations from it.
        low, high: their extremes (inf and -inf where there are none).
        error: sum of squared rounding errors of the stored values.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Moments of nothing, neutral in `merge`."""
        zeros = np.zeros(channels)
        return cls(zeros, zeros, zeros, zeros + np.inf, zeros - np.inf, zeros)

    @classmethod
    def of(cls, x: np.ndarray, error: np.ndarray | None = None) -> Moments:
        """Moments of x (T, C, N); values that are not finite are left out.

        Arguments:
            x: values.
            error: rounding errors of the stored values, of x's shape, if there are any.
        """
        axes = (0, 2)
        finite = np.isfinite(x)
        kept = True if finite.all() else finite
        count = finite.sum(axes, dtype=np.float64)
        safe = np.maximum(count, 1)
        mean = x.sum(axes, dtype=np.float64, where=kept) / safe
        deviation = np.subtract(x, mean[:, None], dtype=np.float64)
        low = x.min(axes, where=kept, initial=np.inf)
        high = x.max(axes, where=kept, initial=-np.inf)
        return cls(
            count=count,
            mean=mean,
            squares=np.square(deviation, out=deviation).sum(axes, where=kept),
            low=low.astype(np.float64),
            high=high.astype(np.float64),
            error=np.zeros(len(mean))
            if error is None
            else np.square(error, dtype=np.float64).sum(axes, where=kept),
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * share,
            squares=self.squares + other.squares + delta**2 * self.count * share,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            error=self.error + other.error,
        )

    def to_json(self) -> dict[str, list[float]]:
        """Every attribute as a list; floats survive JSON exactly."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, list[float]]) -> Moments:
        """The inverse of `to_json`."""
        return cls(**{name: np.array(numbers, np.float64) for name, numbers in value.items()})

    def summary(self) -> dict[str, list[float]]:
        """Per channel: count, mean, std, min, max, and the rounding error's root mean square."""
        count = np.maximum(self.count, 1)
        return {
            "count": [int(number) for number in self.count],
            "mean": self.mean.tolist(),
            "std": np.sqrt(self.squares / count).tolist(),
            "min": self.low.tolist(),
            "max": self.high.tolist(),
            "rounding": np.sqrt(self.error / count).tolist(),
        }
