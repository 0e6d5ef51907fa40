"""Grids whose cells differ in size: the volumes of cells and the interpolation to equal cells.

Means over a domain weigh values by the volumes of cells, and Fourier transforms need evenly spaced
values. Axes that are evenly spaced, up to the rounding of float32 coordinates, are left as they
are. Two kinds of other axes are distinguished:

    Gauss–Chebyshev nodes   y_i = a - b cos(π (i + ½)/n), i = 0..n-1, whose cells are bounded by
                            a - b cos(π i/n) and tile [a - b, a + b] exactly
    any other nodes         cells are bounded half-way between nodes, the outermost ones
                            symmetric about theirs

References:
    | Dedalus: A flexible framework for numerical simulations (Burns et al., 2020)
    | https://doi.org/10.1103/PhysRevResearch.2.023068

    | Barycentric Lagrange Interpolation (Berrut and Trefethen, 2004)
    | https://doi.org/10.1137/S0036144502417715
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["Grid", "faces"]

_EVEN = 1e-3  # greatest deviation of a spacing from their mean, in means, of an even axis
_NODES = 1e-5  # greatest deviation from Chebyshev's nodes, in half widths of the axis
_STENCIL = 4  # values a polynomial goes through: cubic interpolation


class Grid:
    """The spatial axes of a state.

    Arguments:
        shape: The number of cells along each axis, *S.
        coordinates: The increasing coordinates of each axis, or None if they are evenly spaced. By
            default, all are.

    Raises:
        ValueError: Coordinates do not increase, or there is not one per cell.
    """

    def __init__(
        self, shape: Sequence[int], coordinates: Sequence[Sequence[float] | None] = ()
    ) -> None:
        self.shape = tuple(shape)
        given = list(coordinates) or [None] * len(self.shape)
        if len(given) != len(self.shape):
            raise ValueError(f"{len(given)} axes of coordinates for a grid of shape {self.shape}")
        self.axes = [_uneven(i, x, n) for i, (x, n) in enumerate(zip(given, self.shape))]

    @property
    def uniform(self) -> bool:
        """Whether all axes are evenly spaced."""
        return all(x is None for x in self.axes)

    @cached_property
    def volumes(self) -> Tensor | None:
        """The volumes of the cells relative to their mean, with shape (*S); None if uniform."""
        if self.uniform:
            return None
        volumes = torch.ones((), dtype=torch.float64)
        for x, n in zip(self.axes, self.shape):
            widths = np.ones(n) if x is None else np.diff(faces(x))
            volumes = volumes[..., None] * torch.from_numpy(widths / widths.mean())
        return volumes

    def to_uniform(self, u: Tensor) -> Tensor:
        """Returns values at the centres of as many equal cells, by cubic interpolation.

        Arguments:
            u: The values at the nodes, with shape (…, *S).

        Returns:
            The interpolated values in float64, with shape (…, *S); `u` itself on a uniform grid.
        """
        for axis, matrix in self._matrices.items():
            u = (u.to(torch.float64).movedim(axis, -1) @ matrix.T.to(u.device)).movedim(-1, axis)
        return u

    @cached_property
    def _matrices(self) -> dict[int, Tensor]:
        """The interpolation matrix (n, n) of each uneven axis, counted from the last (-1)."""
        uneven = {i - len(self.shape): x for i, x in enumerate(self.axes) if x is not None}
        return {axis: torch.from_numpy(_interpolation(x)) for axis, x in uneven.items()}


def faces(x: np.ndarray) -> np.ndarray:
    """Returns the boundaries of the cells around some nodes.

    Arguments:
        x: The increasing nodes, with shape (n).

    Returns:
        The boundaries, with shape (n + 1).
    """
    n = len(x)
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2 / np.cos(np.pi / (2 * n))
    nodes = middle - half * np.cos(np.pi * (np.arange(n) + 0.5) / n)
    if np.abs(x - nodes).max() <= _NODES * half:
        return middle - half * np.cos(np.pi * np.arange(n + 1) / n)
    between = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - between[0]], between, [2 * x[-1] - between[-1]]])


def _uneven(axis: int, x: Sequence[float] | None, n: int) -> np.ndarray | None:
    """The coordinates of an axis in float64, or None if they are evenly spaced."""
    if x is None or n < 3:
        return None
    nodes = np.asarray(x, np.float64)
    steps = np.diff(nodes)
    if nodes.shape != (n,) or not (steps > 0).all():
        raise ValueError(f"axis {axis}: expected {n} increasing coordinates")
    return None if np.abs(steps / steps.mean() - 1).max() < _EVEN else nodes


def _interpolation(x: np.ndarray) -> np.ndarray:
    """The matrix (n, n) from values at the nodes `x` to values at the centres of n equal cells.

    Each row is Lagrange's polynomial through the nearest nodes.
    """
    n, outer = len(x), faces(x)
    size = min(_STENCIL, n)
    centres = outer[0] + (outer[-1] - outer[0]) * (np.arange(n) + 0.5) / n
    first = np.clip(np.searchsorted(x, centres) - size // 2, 0, n - size)
    matrix = np.zeros((n, n))
    for row, (y, start) in enumerate(zip(centres, first)):
        nodes = x[start : start + size]
        for j in range(size):
            others = np.delete(nodes, j)
            matrix[row, start + j] = np.prod((y - others) / (nodes[j] - others))
    return matrix
