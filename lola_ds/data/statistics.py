"""Streaming moments per channel: count, mean, sum of squared deviations, extremes, rounding error.

Blocks are reduced in float64 about a value near their mean, then merged by the parallel update of
Chan et al., so that neither a large mean nor a long dataset loses digits. Merging in a fixed order
gives the same bits whatever was interrupted in between.

References:
    Chan, Golub & LeVeque (1983), Algorithms for Computing the Sample Variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lola_ds.data.format import decode_frames
from lola_ds.data.native import sum_moments
from lola_ds.fields import TRANSFORMS

__all__ = ["Moments", "frame_moments", "nonfinite_places"]


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
        """Moments of no values, the identity of `merge`."""
        zeros = np.zeros(channels)
        return cls(zeros, zeros, zeros, zeros + np.inf, zeros - np.inf, zeros)

    @classmethod
    def of(cls, x: np.ndarray, error: np.ndarray | None = None) -> Moments:
        """Moments of x (T, C, N); values that are not finite are left out.

        Arguments:
            x: values, float32.
            error: rounding errors of the stored values, of x's shape, if there are any.
        """
        return _of_finite(x, error) or _of_some(x, error)

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


def nonfinite_places(x: np.ndarray, start: int, names: Sequence[str]) -> list[list]:
    """[step, channel name] wherever x (T, C, *S), frames from `start` on, is not finite."""
    finite = np.isfinite(x)
    if finite.all():
        return []
    bad = np.argwhere(~finite.reshape(*x.shape[:2], -1).all(-1))
    return [[start + int(t), names[c]] for t, c in bad]


def frame_moments(
    x: np.ndarray, stored: np.ndarray, dtype: str, transform: Mapping[int, str]
) -> Moments:
    """Moments of frames (T, C, *S) after the transform; `stored` is what is kept of them."""
    values, error = x.reshape(*x.shape[:2], -1), None
    if dtype != "float32":
        with np.errstate(invalid="ignore"):
            error = decode_frames(stored, dtype).reshape(values.shape) - values
    return Moments.of(_transformed(values, transform), error)


def _transformed(x: np.ndarray, transform: Mapping[int, str]) -> np.ndarray:
    """x (T, C, N) after the transform of each channel."""
    y = x.copy() if transform else x
    for channel, name in transform.items():
        values = np.ascontiguousarray(x[:, channel])
        y[:, channel] = TRANSFORMS[name][0](torch.from_numpy(values)).numpy()
    return y


def _of_finite(x: np.ndarray, error: np.ndarray | None) -> Moments | None:
    """Moments of x (T, C, N) float32, or None where it is empty or a value is not finite."""
    if not x.size:
        return None
    near = x[0].mean(-1, dtype=np.float64)
    first, second, low, high = sum_moments(np.ascontiguousarray(x), near)
    if not np.isfinite(second).all():
        return None
    count = x.shape[0] * x.shape[2]
    return Moments(
        count=np.full(len(near), float(count)),
        mean=near + first / count,
        squares=second - first**2 / count,
        low=low,
        high=high,
        error=_squares(error, len(near)),
    )


def _of_some(x: np.ndarray, error: np.ndarray | None) -> Moments:
    """Moments of the finite values of x (T, C, N), in float64."""
    axes, finite = (0, 2), np.isfinite(x)
    count = finite.sum(axes, dtype=np.float64)
    mean = x.sum(axes, dtype=np.float64, where=finite) / np.maximum(count, 1)
    deviation = np.subtract(x, mean[:, None], dtype=np.float64)
    return Moments(
        count=count,
        mean=mean,
        squares=np.square(deviation, out=deviation).sum(axes, where=finite),
        low=x.min(axes, where=finite, initial=np.inf).astype(np.float64),
        high=x.max(axes, where=finite, initial=-np.inf).astype(np.float64),
        error=_squares(error, len(mean), finite),
    )


def _squares(error: np.ndarray | None, channels: int, where: Any = True) -> np.ndarray:
    """Sum of squared errors (T, C, N) of each channel."""
    if error is None:
        return np.zeros(channels)
    return np.square(error, dtype=np.float64).sum((0, 2), where=where)
