"""Random symmetries of a window: axes permuted, flipped, rolled.

A grid's symmetry is a permutation p of its axes, then a flip f of some, then a cyclic shift of the
periodic ones. Written for a scalar on the new coordinates i_1, …, i_N:

    y[i_1, …, i_N] = x[j_1, …, j_N],   j_{p(a)} = i_a, or n_a - 1 - i_a where axis a is flipped.

Vectors and tensors turn with the axes: component (a, b, …) of the result is component
(p(a), p(b), …) of the source, times -1 for each index that lies along a flipped axis. Boundary
conditions move with their sides. Augmentation acts on the host, one copy in all.

Codes of boundary conditions: 0 wall, 1 open, 2 periodic, two sides per axis.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, from_numpy

PERIODIC = 2
AUGMENTATIONS = ("random_axis_flip", "random_axis_permute", "random_axis_roll")

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class WindowSpec:
    """What a window's channels are.

    Attributes:
        ranks: tensor rank of each field, in channel order: 0 scalar, 1 vector, 2 tensor, whose
            components are channels in row-major order.
        dims: N, number of spatial axes.
        fixed: axes whose direction the physics singles out, such as gravity's: never flipped,
            never exchanged.
    """

    ranks: tuple[int, ...]
    dims: int
    fixed: tuple[int, ...] = ()

    @cached_property
    def components(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(field, tensor indices) of every channel: (3, (0,)) is the x-component of field 3."""
        return tuple(
            (field, indices)
            for field, rank in enumerate(self.ranks)
            for indices in itertools.product(range(self.dims), repeat=rank)
        )


@dataclass(frozen=True)
class Symmetry:
    """A symmetry of the grid: permute, then flip, then roll (see the module's docstring).

    Attributes:
        permutation: the source axis of each axis of the result.
        flips: whether each axis of the result is flipped.
        shifts: how many cells each axis of the result is rolled.
    """

    permutation: tuple[int, ...]
    flips: tuple[bool, ...]
    shifts: tuple[int, ...]

    def codes(self, codes: np.ndarray) -> np.ndarray:
        """Boundary codes (N, 2) of the transformed window."""
        moved = codes[list(self.permutation)]
        return np.where(np.array(self.flips)[:, None], moved[:, ::-1], moved)

    def window(self, x: np.ndarray, spec: WindowSpec, out: np.ndarray | None = None) -> np.ndarray:
        """Transforms a window.

        Arguments:
            x: (C, L, *S).
            spec: what its channels are.
            out: where to, an array of the result's shape that shares no memory with x.

        Returns:
            (C, L, *S'), S' the permuted sizes.
        """
        axes = (0, 1, *(2 + axis for axis in self.permutation))
        flip = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        source = x.transpose(axes)[(slice(None), slice(None), *flip)]
        if out is None:
            out = np.empty(source.shape, x.dtype)
        channels = {component: c for c, component in enumerate(spec.components)}
        for c, (field, indices) in enumerate(spec.components):
            origin = channels[field, tuple(self.permutation[index] for index in indices)]
            sign = math.prod(-1 if self.flips[index] else 1 for index in indices)
            for there, here in self._roll_parts(source.shape[2:]):
                np.multiply(source[origin][there], x.dtype.type(sign), out=out[c][here])
        return out

    def _roll_parts(self, sizes: Sequence[int]) -> list[tuple[Any, ...]]:
        """(source, result) slices over (L, *S) that together roll every axis."""
        parts = [[(slice(None), slice(None))]]
        for size, shift in zip(sizes, self.shifts):
            shift %= size
            stay = (slice(0, size - shift), slice(shift, size))
            wrap = (slice(size - shift, size), slice(0, shift))
            parts.append([stay, wrap] if shift else [stay])
        return [tuple(zip(*pairs)) for pairs in itertools.product(*parts)]


def check_augmentations(names: Sequence[str], spec: WindowSpec, sizes: Sequence[int]) -> None:
    """Checks that windows of spatial `sizes` can be augmented by `names`.

    Raises:
        ValueError: an unknown name, or axes of different sizes cannot be exchanged.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augment: unknown '{name}'; known: {', '.join(AUGMENTATIONS)}")
    free = {size for axis, size in enumerate(sizes) if axis not in spec.fixed}
    if "random_axis_permute" in names and len(free) > 1:
        raise ValueError(
            f"augment: random_axis_permute needs axes of one size, this grid is {tuple(sizes)}; "
            "remove it from the list"
        )


def draw_symmetry(
    names: Sequence[str], spec: WindowSpec, sizes: Sequence[int], codes: np.ndarray, seed: int
) -> Symmetry:
    """Draws a symmetry.

    Arguments:
        names: which kinds to draw; the others stay trivial.
            random_axis_flip: each axis with probability 1/2;
            random_axis_permute: a uniform permutation of the axes;
            random_axis_roll: a uniform shift of each axis that is periodic on both sides.
        spec: what the window's channels are; its fixed axes are not flipped and not exchanged.
        sizes: sizes of the spatial axes.
        codes: boundary codes, (N, 2).
        seed: fixes the draw, on every machine and version.

    Raises:
        ValueError: see `check_augmentations`.
    """
    check_augmentations(names, spec, sizes)
    rng = random.Random(seed)
    free = [axis for axis in range(spec.dims) if axis not in spec.fixed]
    permutation, flips, shifts = list(range(spec.dims)), [False] * spec.dims, [0] * spec.dims
    if "random_axis_permute" in names:
        for axis, source in zip(free, rng.sample(free, len(free))):
            permutation[axis] = source
    if "random_axis_flip" in names:
        for axis in free:
            flips[axis] = rng.random() < 0.5
    if "random_axis_roll" in names:
        for axis, source in enumerate(permutation):
            if (np.asarray(codes[source]) == PERIODIC).all():
                shifts[axis] = rng.randrange(sizes[source])
    return Symmetry(tuple(permutation), tuple(flips), tuple(shifts))


def augment_window(
    x: Array, codes: Array, spec: WindowSpec, names: Sequence[str], seed: int
) -> tuple[Array, Array]:
    """Transforms a window and its boundary codes by a random symmetry.

    Arguments:
        x: (C, L, *S), in physical units, on the host.
        codes: boundary codes, (N, 2) or flat (2 N,), as at the end of a label.
        spec: what the channels are.
        names: see `draw_symmetry`.
        seed: fixes the draw.

    Returns:
        The window (C, L, *S) and its codes, of the types and shapes given; inputs are not changed.

    Raises:
        ValueError: see `check_augmentations`.
    """
    window, sides = np.asarray(x), np.asarray(codes).reshape(-1, 2)
    symmetry = draw_symmetry(names, spec, window.shape[2:], sides, seed)
    y, moved = symmetry.window(window, spec), symmetry.codes(sides).reshape(codes.shape)
    wrap: Any = from_numpy if isinstance(x, Tensor) else np.asarray
    return wrap(y), wrap(moved)
