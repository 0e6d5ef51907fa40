"""Random symmetries of a window: axes permuted, flipped, rolled.

A grid's symmetry is a permutation p of its axes, then a flip f of some, then a cyclic shift of the
periodic ones. Written for a scalar on the new coordinates i_1, …, i_N:

    y[i_1, …, i_N] = x[j_1, …, j_N],   j_{p(a)} = i_a, or n_a - 1 - i_a where axis a is flipped.

Vectors and tensors turn with the axes: component (a, b, …) of the result is component
(p(a), p(b), …) of the source, times -1 for each index that lies along a flipped axis. Boundary
conditions move with their sides. Augmentation acts on the host, one copy in all.

Gravity singles out its axis, whose flip alone is no symmetry. With the buoyancy b mirrored it is
one of the Boussinesq equations. Let u, p, b solve

    ∂_t u + u·∇u = ν Δu - ∇p + b e_y,    ∂_t b + u·∇b = κ Δb,    ∇·u = 0

between walls at y_0 and y_1 with u = 0, b = b_0 below and b = b_1 above. Then, at the mirrored
height y* = y_0 + y_1 - y, so do

    u_x'(y) = u_x(y*),   u_y'(y) = -u_y(y*),   b'(y) = b_0 + b_1 - b(y*),
    p'(y) = p(y*) + (b_0 + b_1) (y - (y_0 + y_1) / 2).

The momentum along y at y* times -1 is ∂_t u_y' + u'·∇u_y' = ν Δu_y' + (∂_y p)(y*) - b(y*); with
-∂_y p' = (∂_y p)(y*) - (b_0 + b_1), the right side is ν Δu_y' - ∂_y p' + b'. The linear equation of
b changes sign and shifts by a constant; the walls' values change places and are restored by it. The
added pressure is the hydrostatic one of the uniform buoyancy b_0 + b_1; its mean is zero, as the
gauge of p wants it. In The Well's units b_0 = 1 (the hot plate) and b_1 = 0.

Codes of boundary conditions: 0 wall, 1 open, 2 periodic, two sides per axis.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

__all__ = [
    "Mirror",
    "Symmetry",
    "WindowSpec",
    "check_augmentations",
    "draw_symmetry",
    "find_mirror",
]

PERIODIC = 2
BUOYANCY_SUM = 1.0  # of the values at the two walls, in The Well's units
AUGMENTATIONS = (
    "random_axis_flip",
    "random_axis_permute",
    "random_axis_roll",
    "random_buoyancy_flip",
)

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Mirror:
    """Transform of buoyancy, b -> sum - b, and pressure, p -> p + sum y, in a flip along gravity.

    Attributes:
        axis: Gravity's axis.
        buoyancy: Channel of the buoyancy.
        pressure: Channel of the pressure, if there is one.
        heights: Coordinates along the axis, from the middle.
    """

    axis: int
    buoyancy: int
    pressure: int | None
    heights: tuple[float, ...]

    def apply(self, x: np.ndarray) -> None:
        """Transforms buoyancy and pressure of a flipped window (C, L, *S) in place."""
        np.subtract(BUOYANCY_SUM, x[self.buoyancy], out=x[self.buoyancy])
        if self.pressure is not None:
            shape = [1] * (x.ndim - 1)
            shape[1 + self.axis] = -1
            x[self.pressure] += np.array(self.heights, x.dtype).reshape(shape) * BUOYANCY_SUM


def find_mirror(
    channels: Sequence[str],
    axes: Sequence[str],
    gravity: Sequence[int],
    space: Mapping[str, Mapping[str, Any]],
) -> Mirror | None:
    """Finds the mirror of a Boussinesq flow.

    Arguments:
        channels: Names of the channels.
        axes: Names of the spatial axes.
        gravity: The axes along which gravity points.
        space: The grid of each axis, `{"start", "step", "size"}` or `{"values"}`.

    Returns:
        None unless there are a channel `buoyancy` and one axis of gravity with a symmetric grid.
    """
    if len(gravity) != 1 or "buoyancy" not in channels or axes[gravity[0]] not in space:
        return None
    grid = space[axes[gravity[0]]]
    y = np.array(grid["values"]) if "values" in grid else grid["step"] * np.arange(grid["size"])
    y = y - (y[0] + y[-1]) / 2
    if np.abs(y + y[::-1]).max() > 1e-5 * np.abs(y).max():
        return None
    pressure = channels.index("pressure") if "pressure" in channels else None
    return Mirror(gravity[0], channels.index("buoyancy"), pressure, tuple(y.tolist()))


@dataclass(frozen=True)
class WindowSpec:
    """The tensor ranks and special axes of a window's channels.

    Attributes:
        ranks: Tensor rank of each field, in channel order: 0 scalar, 1 vector, 2 tensor, whose
            components are channels in row-major order.
        dims: N, number of spatial axes.
        fixed: Axes whose direction the physics singles out, such as gravity's: never exchanged,
            and flipped with the mirror only.
        mirror: What makes a flip along gravity a symmetry, if anything does.
    """

    ranks: tuple[int, ...]
    dims: int
    fixed: tuple[int, ...] = ()
    mirror: Mirror | None = None

    @cached_property
    def components(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Returns (field, tensor indices) of every channel: (3, (0,)) is field 3's x-component."""
        return tuple(
            (field, indices)
            for field, rank in enumerate(self.ranks)
            for indices in itertools.product(range(self.dims), repeat=rank)
        )


@dataclass(frozen=True)
class Symmetry:
    """A symmetry of the grid: permute, then flip, then roll (see the module's docstring).

    Attributes:
        permutation: The source axis of each axis of the result.
        flips: Whether each axis of the result is flipped.
        shifts: How many cells each axis of the result is rolled.
    """

    permutation: tuple[int, ...]
    flips: tuple[bool, ...]
    shifts: tuple[int, ...]

    def codes(self, codes: np.ndarray) -> np.ndarray:
        """Transforms boundary codes.

        Arguments:
            codes: Boundary codes, with shape (N, 2).

        Returns:
            The codes of the transformed window, with shape (N, 2).
        """
        moved = codes[list(self.permutation)]
        return np.where(np.array(self.flips)[:, None], moved[:, ::-1], moved)

    def window(self, x: np.ndarray, spec: WindowSpec, out: np.ndarray | None = None) -> np.ndarray:
        """Transforms a window.

        Arguments:
            x: The window, with shape (C, L, *S).
            spec: The specification of its channels.
            out: An array of the result's shape that shares no memory with `x`, to write to.

        Returns:
            The window, with shape (C, L, *S'), where S' are the permuted sizes.
        """
        axes = (0, 1, *(2 + axis for axis in self.permutation))
        flip = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        source = x.transpose(axes)[(slice(None), slice(None), *flip)]
        if out is None:
            out = np.empty(source.shape, x.dtype)
        parts = self._roll_parts(source.shape[2:])
        for here, there, negate in self._channel_runs(spec):
            for end, begin in parts:
                _copy(source[(there, *end)], negate, out[(here, *begin)])
        if spec.mirror is not None and self.flips[spec.mirror.axis]:
            spec.mirror.apply(out)
        return out

    def _channel_runs(self, spec: WindowSpec) -> list[tuple[slice, slice, bool]]:
        """(result, source, whether negated) slices of channels that are moved alike."""
        channels = {component: c for c, component in enumerate(spec.components)}
        runs: list[tuple[slice, slice, bool]] = []
        for c, (field, indices) in enumerate(spec.components):
            origin = channels[field, tuple(self.permutation[index] for index in indices)]
            negate = sum(self.flips[index] for index in indices) % 2 == 1
            if runs and runs[-1][1].stop == origin and runs[-1][2] == negate:
                here, there, _ = runs.pop()
                runs.append((slice(here.start, c + 1), slice(there.start, origin + 1), negate))
            else:
                runs.append((slice(c, c + 1), slice(origin, origin + 1), negate))
        return runs

    def _roll_parts(self, sizes: Sequence[int]) -> list[tuple[Any, ...]]:
        """(source, result) slices over (L, *S) that together roll every axis."""
        parts = [[(slice(None), slice(None))]]  # of the frames
        for size, shift in zip(sizes, self.shifts):
            shift %= size
            stay = (slice(0, size - shift), slice(shift, size))
            wrap = (slice(size - shift, size), slice(0, shift))
            parts.append([stay, wrap] if shift else [stay])
        return [tuple(zip(*pairs)) for pairs in itertools.product(*parts)]


def _copy(source: np.ndarray, negate: bool, out: np.ndarray) -> None:
    """Copies values, or their negatives; bfloat16 comes as its bits in uint16."""
    if not negate:
        np.copyto(out, source)
    elif source.dtype == np.uint16:
        np.bitwise_xor(source, np.uint16(0x8000), out=out)
    else:
        np.negative(source, out=out)


def check_augmentations(names: Sequence[str], spec: WindowSpec, sizes: Sequence[int]) -> None:
    """Checks that windows can be augmented.

    Arguments:
        names: The kinds of symmetries.
        spec: The specification of the window's channels.
        sizes: The sizes of the spatial axes.

    Raises:
        ValueError: A name is unknown, or axes of different sizes cannot be exchanged.
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
    if "random_buoyancy_flip" in names and spec.mirror is None:
        raise ValueError(
            "augment: random_buoyancy_flip needs a field buoyancy and one axis of gravity with a "
            "symmetric grid; set gravity in the dataset's configuration before sharding, or remove "
            "it from the list"
        )


def draw_symmetry(
    names: Sequence[str], spec: WindowSpec, sizes: Sequence[int], codes: np.ndarray, seed: int
) -> Symmetry:
    """Draws a symmetry.

    Arguments:
        names: Which kinds to draw; the others stay trivial.
            random_axis_flip: each axis with probability 1/2;
            random_axis_permute: a uniform permutation of the axes;
            random_axis_roll: a uniform shift of each axis that is periodic on both sides;
            random_buoyancy_flip: gravity's axis with probability 1/2, the buoyancy mirrored.
        spec: What the window's channels are.
        sizes: Sizes of the spatial axes.
        codes: Boundary codes, (N, 2).
        seed: Fixes the draw, on every machine and version.

    Returns:
        The symmetry.

    Raises:
        ValueError: See `check_augmentations`.
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
    if "random_buoyancy_flip" in names and spec.mirror is not None:
        flips[spec.mirror.axis] = rng.random() < 0.5
    return Symmetry(tuple(permutation), tuple(flips), tuple(shifts))
