r"""Self-gravity and radiative cooling for the Euler solver, in three dimensions.

A self-gravitating gas that exchanges heat with radiation obeys the Euler equations with sources:

.. math::
    ∂_t (ρ v) + … &= -ρ ∇Φ,    ΔΦ = 4π G ρ,    Φ → 0 far away, \\
    ∂_t E + … &= -ρ v·∇Φ + Z n_H (Γ - n_H Λ(T)).

The potential of the gas in the box, in otherwise empty space, is the convolution of its density
with -G / r. Fourier transforms of twice the size compute it exactly as the direct sum over cells
(Hockney & Eastwood 1988, §6-5-4). The force is its central difference, so forces between cells are
opposite and momentum is conserved. Heating Γ and cooling Λ are those of the interstellar medium
(Koyama & Inutsuka 2002), times a metallicity Z; the temperature relaxes towards its equilibrium and
never overshoots (Vázquez-Semadeni et al. 2007, §2.2). Sources act for half a step before and after
each step of the flow (Strang 1968).

References:
    R. W. Hockney, J. W. Eastwood, Computer Simulation Using Particles, Adam Hilger 1988.
    H. Koyama, S. Inutsuka, An origin of supersonic motions in interstellar clouds, ApJ 564 (2002).
    E. Vázquez-Semadeni et al., Molecular cloud evolution II, ApJ 657 (2007).
    G. Strang, On the construction and comparison of difference schemes, SIAM J. Numer. Anal. 5
        (1968).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from data_prep.synthesize.euler import EulerSolver

__all__ = ["Cooling", "GravityCoolingSolver", "cooling_function"]

#: The mean of 1 / r over a cube of side 1, from its centre.
CUBE_POTENTIAL = 3 * math.log(2 + math.sqrt(3)) - math.pi / 2

#: Steps per 1 / √(4π G ρ), the time in which the densest cell would collapse.
COLLAPSE_STEPS = 4


@dataclass(frozen=True)
class Cooling:
    """Radiative heating and cooling of a gas with pressure p = ρ R T.

    Arguments:
        gas_constant: R, in units of velocity² per kelvin.
        hydrogen: The number of hydrogen nuclei per cm³ in a unit of density.
        heating: The rate at which radiation heats thin gas, Z (γ - 1) n_H Γ / (ρ R), in kelvin per
            unit of time.
    """

    gas_constant: float
    hydrogen: float
    heating: float

    def temperature(self, rho: Tensor, p: Tensor) -> Tensor:
        """The temperature in kelvin."""
        return p / (rho * self.gas_constant)

    def relax(self, rho: Tensor, T: Tensor, dt: Tensor) -> Tensor:
        """The temperature after a time `dt` at constant density.

        It decays exponentially to its equilibrium at the present rate, (T - T_eq) / |dT/dt|, and is
        at least the lowest of `TEMPERATURES`, which is close to that of the cosmic background.
        """
        T = T.clamp(min=TEMPERATURES[0])
        if self.heating == 0:
            return T
        n = rho * self.hydrogen
        drive = self.heating * (1 - n * cooling_function(T))
        goal = self.equilibrium(n)
        away = T - goal
        decays = drive * away < 0  # otherwise T is the equilibrium, up to rounding
        exponent = torch.where(decays, dt * drive / torch.where(decays, away, 1), 0)
        return goal + away * exponent.exp()

    def equilibrium(self, n: Tensor) -> Tensor:
        """The temperature at which Γ = n Λ(T), within `TEMPERATURES`."""
        log_n, log_T = (table.to(n) for table in self._equilibria)
        x = n.log().clamp(log_n[0], log_n[-1])
        above = torch.searchsorted(log_n, x).clamp(1, len(log_n) - 1)
        share = (x - log_n[above - 1]) / (log_n[above] - log_n[above - 1])
        return torch.lerp(log_T[above - 1], log_T[above], share).exp()

    @cached_property
    def _equilibria(self) -> tuple[Tensor, Tensor]:
        """log n, increasing, and the logarithms of the equilibrium temperatures."""
        low, high = map(math.log, TEMPERATURES)
        log_T = torch.linspace(low, high, 1024, dtype=torch.float64)
        return -cooling_function(log_T.exp()).log().flip(0), log_T.flip(0)


#: The range of equilibrium temperatures, in kelvin; gas with a `Cooling` is never colder than that.
TEMPERATURES = (3.0, 1e5)


def cooling_function(T: Tensor) -> Tensor:
    """Λ / Γ in cm³ at T kelvin (Koyama & Inutsuka 2002, eq. 4, as corrected in Vázquez-Semadeni et
    al. 2007, eq. 9); increasing."""
    return 1e7 * torch.exp(-1.184e5 / (T + 1000)) + 1.4e-2 * T.sqrt() * torch.exp(-92 / T)


@dataclass(frozen=True)
class GravityCoolingSolver(EulerSolver):
    """The Euler equations with self-gravity and cooling, on a grid of cubic cells.

    Arguments:
        gravity: The gravitational constant G, or 0 for no gravity.
        cooling: Heating and cooling, or None.

    Raises:
        ValueError: The grid is not three-dimensional with cubic cells.
    """

    gravity: float = 0.0
    cooling: Cooling | None = None

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or len(set(self.spacing)) > 1:
            raise ValueError(f"spacing={[*self.spacing]}: three equal numbers are expected")

    def time_step(self, U: Tensor, gamma: Tensor) -> Tensor:
        """The time step of the flow, or a fraction of the collapse time if that is shorter."""
        densest = U[:, 0].flatten(start_dim=1).amax(dim=1).double()
        collapse = (4 * math.pi * self.gravity * densest).rsqrt() / COLLAPSE_STEPS
        return torch.minimum(super().time_step(U, gamma), collapse)

    def step(self, U: Tensor, gamma: Tensor, dt: Tensor) -> Tensor:
        """Half a step of the sources, a step of the flow, half a step of the sources."""
        U = self._kick(self._cool(U, gamma, dt / 2), dt / 2)
        U = super().step(U, gamma, dt)
        return self._cool(self._kick(U, dt / 2), gamma, dt / 2)

    def potential(self, rho: Tensor) -> Tensor:
        """The potential Φ (B, X + 2, Y + 2, Z + 2), with a margin of 1 cell, of ρ (B, X, Y, Z)."""
        shape = rho.shape[1:]
        padded = [2 * (cells + 1) for cells in shape]
        waves = torch.fft.rfftn(rho, s=padded, dim=(1, 2, 3))
        kernel = _inverse_distance(tuple(padded), rho.dtype).to(rho.device)
        phi = torch.fft.irfftn(waves * kernel, s=padded, dim=(1, 2, 3))
        phi = phi.roll((1, 1, 1), dims=(1, 2, 3))
        x, y, z = (slice(0, cells + 2) for cells in shape)
        return -self.gravity * self.spacing[0] ** 2 * phi[:, x, y, z]

    def acceleration(self, rho: Tensor) -> Tensor:
        """-∇Φ at the centres of the cells, of shape (B, 3, X, Y, Z)."""
        phi = self.potential(rho)
        inner = [slice(1, cells + 1) for cells in rho.shape[1:]]
        parts = []
        for d, cells in enumerate(rho.shape[1:]):
            low, high = list(inner), list(inner)
            low[d], high[d] = slice(0, cells), slice(2, cells + 2)
            difference = phi[(slice(None), *low)] - phi[(slice(None), *high)]
            parts.append(difference / (2 * self.spacing[d]))
        return torch.stack(parts, dim=1)

    def _kick(self, U: Tensor, dt: Tensor) -> Tensor:
        """Accelerates by gravity for a time `dt`; the internal energy is unchanged."""
        if self.gravity == 0:
            return U
        rho, m, energy = U[:, :1], U[:, 1:-1], U[:, -1:]
        kick = rho * dt.reshape(-1, 1, 1, 1, 1) * self.acceleration(U[:, 0])
        work = (kick * (m + kick / 2)).sum(dim=1, keepdim=True) / rho
        return torch.cat((rho, m + kick, energy + work), dim=1)

    def _cool(self, U: Tensor, gamma: Tensor, dt: Tensor) -> Tensor:
        """Heats and cools for a time `dt`; density and velocity are unchanged."""
        if self.cooling is None:
            return U
        rho, m, energy = U[:, :1], U[:, 1:-1], U[:, -1:]
        dt, gamma = dt.reshape(-1, 1, 1, 1, 1), gamma.reshape(-1, 1, 1, 1, 1)
        kinetic = (m * m).sum(dim=1, keepdim=True) / (2 * rho)
        T = self.cooling.temperature(rho, (gamma - 1) * (energy - kinetic))
        p = rho * self.cooling.gas_constant * self.cooling.relax(rho, T, dt)
        return torch.cat((rho, m, kinetic + p / (gamma - 1)), dim=1)


@lru_cache(maxsize=4)
def _inverse_distance(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The transform of 1 / r in units of a cell, periodic with the given shape."""
    square = torch.zeros((), dtype=torch.float64)
    for d, cells in enumerate(shape):
        index = torch.arange(cells, dtype=torch.float64)
        offset = torch.minimum(index, cells - index).square()
        square = square + offset.reshape([-1 if d == axis else 1 for axis in range(len(shape))])
    square[(0,) * len(shape)] = CUBE_POTENTIAL**-2
    return torch.fft.rfftn(square.rsqrt()).to(dtype.to_complex())
