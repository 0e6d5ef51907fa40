"""Random initial states of the families of flows.

Each is a function of a random generator that gives the same problem at every resolution.

`multi_quadrants`: the unit box is cut along each axis at random positions; each of the resulting
quadrants holds one constant state with random density, pressure and velocity. The interfaces break
up into shocks, contacts and rarefactions which then interact (Lax & Liu 1998; the datasets
`euler_multi_quadrants_*` of Ohana et al. 2024). `unstable_layer`: a fluid at rest, warm below.
`turbulent_velocity`: Burgers turbulence.

References:
    P. D. Lax, X.-D. Liu, Solution of two-dimensional Riemann problems of gas dynamics by positive
        schemes, SIAM J. Sci. Comput. 19 (1998).
    J. M. Burgers, A mathematical model illustrating the theory of turbulence, Adv. Appl. Mech. 1
        (1948).
    R. Ohana et al., The Well: a large-scale collection of diverse physics simulations for machine
        learning, NeurIPS 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["multi_quadrants", "turbulent_velocity", "unstable_layer"]

#: The numbers of pieces along an axis, and the ranges of the states. Density and pressure are drawn
#: uniformly in their logarithm, each component of the velocity uniformly. The ranges are chosen so
#: that the fields have about the means and deviations of The Well's.
PIECES = (2, 3, 4)
DENSITY = (0.4, 1.8)
PRESSURE = (0.13, 2.8)
VELOCITY = (-0.8, 0.8)

#: How far a cut moves from its place in an even division, in widths of a piece.
JITTER = 0.3


def multi_quadrants(
    rng: np.random.Generator, resolution: Sequence[int], periodic: Sequence[bool], gamma: float
) -> np.ndarray:
    """Draws an initial state.

    Interfaces do not follow the grid. The state of a cell that they cross is the exact average of
    the conserved variables, so that the same generator gives the same problem at every resolution.

    Arguments:
        rng: The random generator.
        resolution: The number of cells along each dimension.
        periodic: Whether each dimension is periodic; if so, the first cut is random, too.
        gamma: The ratio of specific heats.

    Returns:
        The conserved variables (ρ, ρ v, E), of shape (D + 2, *resolution), in float64.
    """
    cuts = [_draw_cuts(rng, wraps) for wraps in periodic]
    U = _draw_states(rng, [len(cut) for cut in cuts], gamma)
    for axis, (cut, cells) in enumerate(zip(cuts, resolution)):
        cover = _coverage(cut, cells)
        U = np.moveaxis(np.tensordot(U, cover, axes=(1 + axis, 1)), -1, 1 + axis)
    return np.ascontiguousarray(U)


def _draw_cuts(rng: np.random.Generator, periodic: bool) -> np.ndarray:
    """Where pieces start along an axis, increasing; piece i ends where the next one (or, in a
    period, the first) starts."""
    pieces = rng.choice(PIECES)
    cuts = np.arange(pieces) + rng.uniform(-JITTER, JITTER, size=pieces)
    if not periodic:
        cuts[0] = 0
    offset = rng.uniform(0, pieces) if periodic else 0
    return (cuts + offset) / pieces


def _draw_states(rng: np.random.Generator, pieces: Sequence[int], gamma: float) -> np.ndarray:
    """One constant state per quadrant: conserved variables, of shape (D + 2, *pieces)."""
    rho = np.exp(rng.uniform(*np.log(DENSITY), size=pieces))
    p = np.exp(rng.uniform(*np.log(PRESSURE), size=pieces))
    v = rng.uniform(*VELOCITY, size=(len(pieces), *pieces))
    energy = p / (gamma - 1) + rho * np.square(v).sum(axis=0) / 2
    return np.concatenate((rho[None], rho * v, energy[None]))


def _coverage(cuts: np.ndarray, cells: int) -> np.ndarray:
    """The fraction of each cell of the unit interval that each piece covers, (cells, pieces).

    Pieces are intervals [cuts[i], cuts[i + 1]) of a line of period 1.
    """
    faces = np.arange(cells + 1) / cells
    stops = np.append(cuts[1:], cuts[0] + 1)
    covered = np.zeros((cells, len(cuts)))
    for period in range(-2, 2):
        starts_here, stops_here = cuts + period, stops + period
        low = np.maximum(faces[:-1, None], starts_here)
        high = np.minimum(faces[1:, None], stops_here)
        covered += np.clip(high - low, 0, None)
    return covered * cells


#: Convection: The Well's slopes of the buoyancy, the thickness of the layer above the floor in
#: which it reaches the floor's value, and the size and the waves of the perturbation.
SLOPES = (0.2, 0.4, 0.6, 0.8, 1.0)
LAYER = 0.08
PERTURBATION = 0.1
WAVES = (8, 4)


def unstable_layer(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draws the buoyancy of a fluid at rest between a warm floor and a cold ceiling.

    A linear profile δ (1 - y), a diffusive layer (1 - δ) erfc(y / d) that joins it to the floor's
    value 1, and a perturbation that vanishes at both: a sum of waves with random amplitudes and a
    flat spectrum up to a largest wave number.

    Arguments:
        rng: The random generator.
        x: The positions in a period of length 1, with shape (X,).
        y: The heights between 0 and 1, with shape (Y,).

    Returns:
        The buoyancy, of shape (X, Y).
    """
    slope = rng.choice(SLOPES)
    erfc = np.array([math.erfc(height / LAYER) for height in y])
    profile = slope * (1 - y) + (1 - slope) * (1 - y) * erfc
    m, n = (np.arange(1, number + 1) for number in WAVES)
    amplitude = rng.normal(size=WAVES) / math.sqrt(math.prod(WAVES) / 4)
    phase = rng.uniform(0, 2 * np.pi, size=WAVES)
    along_x = np.cos(2 * np.pi * m[:, None] * x[:, None, None] + phase)
    along_y = np.sin(np.pi * n[:, None] * y)
    return profile + PERTURBATION * np.einsum("xmn,mn,ny->xy", along_x, amplitude, along_y)


#: Clouds: the deviation of each component of the velocity, in units of the free fall, and the
#: largest wave number per box.
TURBULENCE = 0.5
SMALLEST_WAVE = 4


def turbulent_velocity(rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Draws a random velocity without divergence, with the energy spectrum E(k) ∝ k⁻².

    A sum of the waves in the box with up to `SMALLEST_WAVE` periods along each axis, of random
    directions across the wave, amplitudes ∝ k⁻² and phases, scaled to the deviation `TURBULENCE`.

    Arguments:
        rng: The random generator.
        resolution: The number of cells along each axis of the unit cube.

    Returns:
        Values at the centres of the cells, of shape (3, X, Y, Z).
    """
    wave = np.arange(-SMALLEST_WAVE, SMALLEST_WAVE + 1)
    k = np.stack(np.meshgrid(wave, wave, wave, indexing="ij")).astype(float)
    square = np.square(k).sum(axis=0)
    square[square == 0] = np.inf
    a = rng.normal(size=k.shape) + 1j * rng.normal(size=k.shape)
    a = (a - k * (k * a).sum(axis=0) / square) / square
    a *= TURBULENCE / math.sqrt(np.square(np.abs(a)).sum() / 6)
    centres = (np.arange(resolution) + 0.5) / resolution
    along = np.exp(2j * np.pi * centres[:, None] * wave)
    return np.einsum("xi,yj,zk,dijk->dxyz", along, along, along, a, optimize=True).real
