r"""Grids: volumes of cells, and values between them.

A mean over a domain weighs every value with the volume of its cell, and a Fourier transform needs
values evenly spaced: on an axis whose coordinates are not (Rayleigh–Bénard's y has Chebyshev's
nodes), both are wrong without care. Axes evenly spaced, up to the rounding of float32 coordinates,
are taken as they are.

    Gauss–Chebyshev nodes   y_i = a - b cos(π (i + ½)/n), i = 0..n-1, whose cells are bounded by
                            a - b cos(π i/n): they tile [a - b, a + b] exactly
    any other nodes         cells are bounded half-way between nodes, the outermost ones
                            symmetric about theirs

References:
    Burns et al., Dedalus, Physical Review Research 2, 2020 (the nodes of The Well's simulations).
    Berrut and Trefethen, Barycentric Lagrange interpolation, SIAM Review 46, 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["Grid"]

_EVEN = 1e-3  # greatest deviation of a spacing from their mean, in means, of an even axis
_NODES = 1e-5  # greatest deviation from Chebyshev's nodes, in half widths of the axis
_STENCIL = 4  # values a polynomial goes through: cubic interpolation


class Grid:
    """The spatial axes S of a state.

    Arguments:
        shape: S, the number of cells of every axis.
        coordinates: per axis, its increasing coordinates, or None if they are evenly spaced; all
            axes are even by default.

    Raises:
        ValueError: coordinates that do not increase, or not one per cell.
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
        """Volumes of the cells relative to their mean, (*S) float64; None on a uniform grid."""
        if self.uniform:
            return None
        volumes = torch.ones((), dtype=torch.float64)
        for x, n in zip(self.axes, self.shape):
            widths = np.ones(n) if x is None else np.diff(faces(x))
            volumes = volumes[..., None] * torch.from_numpy(widths / widths.mean())
        return volumes

    def to_uniform(self, u: Tensor) -> Tensor:
        """Values (…, *S) at the centres of as many equal cells: cubic interpolation, float64.

        On a uniform grid, `u` itself.
        """
        for axis, matrix in self._matrices.items():
            u = (u.to(torch.float64).movedim(axis, -1) @ matrix.T.to(u.device)).movedim(-1, axis)
        return u

    @cached_property
    def _matrices(self) -> dict[int, Tensor]:
        """Axis, counted from the last (-1), -> its interpolation (n, n)."""
        uneven = {i - len(self.shape): x for i, x in enumerate(self.axes) if x is not None}
        return {axis: torch.from_numpy(_interpolation(x)) for axis, x in uneven.items()}


def faces(x: np.ndarray) -> np.ndarray:
    """The n + 1 boundaries of the cells around n increasing nodes."""
    n = len(x)
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2 / np.cos(np.pi / (2 * n))
    nodes = middle - half * np.cos(np.pi * (np.arange(n) + 0.5) / n)
    if np.abs(x - nodes).max() <= _NODES * half:
        return middle - half * np.cos(np.pi * np.arange(n + 1) / n)
    between = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - between[0]], between, [2 * x[-1] - between[-1]]])


def _uneven(axis: int, x: Sequence[float] | None, n: int) -> np.ndarray | None:
    """Coordinates of an axis in float64, or None when they are evenly spaced."""
    if x is None or n < 3:
        return None
    nodes = np.asarray(x, np.float64)
    steps = np.diff(nodes)
    if nodes.shape != (n,) or not (steps > 0).all():
        raise ValueError(f"axis {axis}: expected {n} increasing coordinates")
    return None if np.abs(steps / steps.mean() - 1).max() < _EVEN else nodes


def _interpolation(x: np.ndarray) -> np.ndarray:
    """(n, n): values at the nodes `x` -> values at the centres of n equal cells between the faces.

    Each row is Lagrange's polynomial through the nearest nodes, in float64.
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
