"""A finite-volume solver for the compressible Euler equations, batched in torch, in any dimension.

An ideal gas with density ρ, velocity v, pressure p and ratio of specific heats γ conserves

    ∂ₜ U + Σ_d ∂_d F_d(U) = 0,    U = (ρ, ρ v, E),    E = p / (γ - 1) + ρ |v|² / 2,
    F_d(U) = (ρ v_d, ρ v_d v + p e_d, (E + p) v_d).

The scheme is the method of lines on cell averages: primitive variables W = (ρ, v, p) are
reconstructed linearly in each cell with the monotonized-central limiter (MUSCL; van Leer 1977,
1979), the two states that meet at a face are resolved by the HLLC Riemann solver (Toro 2009, §10.4)
with Einfeldt's bounds on the wave speeds (Einfeldt 1988; Batten et al. 1997), and time advances by
the strong-stability-preserving Runge-Kutta scheme of second order (Shu & Osher 1988). Dimensions
are not split, so exchanging or mirroring axes commutes with the solver. Where a stage would make
density or pressure non-positive, it is repeated with piecewise-constant reconstruction around the
cells at fault, where HLLC keeps positivity (Batten et al. 1997; the a-posteriori idea is from Clain
et al. 2011); the scheme stays conservative.

States are tensors of shape (B, D + 2, *S): trajectory, component, one axis per dimension. Every
trajectory has its own γ and its own time step, so that its solution does not depend on which others
share its batch.

References:
    E. F. Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, 3rd ed., Springer 2009.
    B. van Leer, Towards the ultimate conservative difference scheme IV and V,
        J. Comput. Phys. 23 (1977) and 32 (1979).
    B. Einfeldt, On Godunov-type methods for gas dynamics, SIAM J. Numer. Anal. 25 (1988).
    P. Batten, N. Clarke, C. Lambert, D. M. Causon, On the choice of wavespeeds for the HLLC Riemann
        solver, SIAM J. Sci. Comput. 18 (1997).
    C.-W. Shu, S. Osher, Efficient implementation of essentially non-oscillatory shock-capturing
        schemes, J. Comput. Phys. 77 (1988).
    S. Clain, S. Diot, R. Loubère, A high-order finite volume method for systems of conservation
        laws: multi-dimensional optimal order detection (MOOD), J. Comput. Phys. 230 (2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["EulerSolver", "conserved", "hllc_flux", "primitive"]


def conserved(W: Tensor, gamma: Tensor) -> Tensor:
    """Conserved variables (ρ, ρ v, E) of primitive ones (ρ, v, p).

    Arguments:
        W: The primitive variables, of shape (B, D + 2, *S).
        gamma: The ratio of specific heats per trajectory, of shape (B,).
    """
    rho, v, p = W[:, :1], W[:, 1:-1], W[:, -1:]
    energy = p / (_expand(gamma, W) - 1) + rho * v.square().sum(dim=1, keepdim=True) / 2
    return torch.cat((rho, rho * v, energy), dim=1)


def primitive(U: Tensor, gamma: Tensor) -> Tensor:
    """Primitive variables (ρ, v, p) of conserved ones (ρ, ρ v, E); shapes as in `conserved`."""
    rho, m, energy = U[:, :1], U[:, 1:-1], U[:, -1:]
    v = m / rho
    p = (_expand(gamma, U) - 1) * (energy - (m * v).sum(dim=1, keepdim=True) / 2)
    return torch.cat((rho, v, p), dim=1)


def hllc_flux(left: Tensor, right: Tensor, gamma: Tensor, axis: int) -> Tensor:
    """The HLLC flux through faces normal to `axis` (Toro 2009, eq. 10.38-10.39).

    The fan between two states is approximated by two waves of speeds s_l, s_r and a contact of
    speed s_m between them; the flux is that of the one state (left, right, or starred beside the
    contact) which covers the face.

    Arguments:
        left: Primitive variables on the low side of each face, of shape (B, D + 2, *S).
        right: Primitive variables on the high side, of the same shape.
        gamma: The ratio of specific heats per trajectory, of shape (B,).
        axis: The dimension, counted from 0, that the faces are normal to.

    Returns:
        The flux of (ρ, ρ v, E), of the shape of `left`.
    """
    gamma = _expand(gamma, left).squeeze(1)
    rho_l, u_l, p_l = left[:, 0], left[:, 1 + axis], left[:, -1]
    rho_r, u_r, p_r = right[:, 0], right[:, 1 + axis], right[:, -1]

    s_l, s_r = _wave_speeds(rho_l, u_l, p_l, rho_r, u_r, p_r, gamma)
    mass_l, mass_r = rho_l * (s_l - u_l), rho_r * (s_r - u_r)
    s_m = ((p_r - p_l) + (mass_l * u_l - mass_r * u_r)) / (mass_l - mass_r)

    from_left = s_m >= 0
    rho, *v, p = torch.where(from_left.unsqueeze(1), left, right).unbind(dim=1)
    s = torch.where(from_left, s_l, s_r)
    u = v[axis]
    energy = p / (gamma - 1) + rho * sum(v_d.square() for v_d in v) / 2

    starred = torch.where(from_left, s_l < 0, s_r > 0)
    squeeze = (s - u) / (s - s_m)
    p_star = p + rho * (s - u) * (s_m - u)
    energy_star = squeeze * energy + (p_star * s_m - p * u) / (s - s_m)
    rho = torch.where(starred, squeeze * rho, rho)
    energy = torch.where(starred, energy_star, energy)
    p = torch.where(starred, p_star, p)
    v[axis] = u = torch.where(starred, s_m, u)

    mass = rho * u
    momentum = [mass * v_d for v_d in v]
    momentum[axis] = momentum[axis] + p
    return torch.stack((mass, *momentum, u * (energy + p)), dim=1)


@dataclass(frozen=True)
class EulerSolver:
    """The Euler equations on a uniform grid.

    Arguments:
        spacing: The width of a cell along each dimension.
        periodic: Whether each dimension is periodic; otherwise its two sides are open (zero-order
            extrapolation, so that waves leave).
        cfl: The Courant number: the time step is `cfl / max Σ_d (|v_d| + c) / spacing_d`, with c
            the speed of sound. Positivity of the first-order scheme holds up to 1/2.
    """

    spacing: Sequence[float]
    periodic: Sequence[bool]
    cfl: float = 0.45

    def evolve(self, U: Tensor, gamma: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        """Solves from `times[0]`, and yields the state at each of `times`, the first included.

        Time steps are evened out between two times, so that each time is met exactly.

        Arguments:
            U: The conserved variables at `times[0]`, of shape (B, D + 2, *S); its type (float32 or
                float64) is that of the computation.
            gamma: The ratio of specific heats per trajectory, of shape (B,).
            times: Increasing times.

        Raises:
            ValueError: A density or pressure of the initial state is not positive.
            ArithmeticError: The solution could not be kept positive.
        """
        gamma = gamma.to(U)
        if not _is_physical(U, gamma).all():
            raise ValueError("the initial state has a density or pressure that is not positive")

        yield U
        for start, stop in pairwise(times):
            U = self.advance(U, gamma, stop - start)
            yield U

    def advance(self, U: Tensor, gamma: Tensor, duration: float) -> Tensor:
        """Advances every trajectory by `duration`, each in as many steps as it needs."""
        U = U.clone()
        left = torch.full_like(gamma, duration, dtype=torch.float64)

        while (active := left.nonzero().squeeze(1)).numel() > 0:
            V, gamma_V = U[active], gamma[active]
            steps = torch.ceil(left[active] / self.time_step(V, gamma_V)).clamp(min=1)
            dt = left[active] / steps
            U[active] = self.step(V, gamma_V, dt.to(V))
            left[active] -= dt

        return U

    def time_step(self, U: Tensor, gamma: Tensor) -> Tensor:
        """The longest stable time step of each trajectory, of shape (B,), in float64."""
        W = primitive(U, gamma)
        c = _sound_speed(W[:, 0], W[:, -1], _expand(gamma, W).squeeze(1))
        rate = torch.zeros_like(c)
        for d, h in enumerate(self.spacing):
            rate += (W[:, 1 + d].abs() + c) / h
        return self.cfl / rate.flatten(start_dim=1).amax(dim=1).double()

    def step(self, U: Tensor, gamma: Tensor, dt: Tensor) -> Tensor:
        """One step of the second-order SSP Runge-Kutta scheme (Shu & Osher 1988, eq. 2.16).

        Arguments:
            U: The conserved variables, of shape (B, D + 2, *S).
            gamma: The ratio of specific heats per trajectory, of shape (B,).
            dt: The time step per trajectory, of shape (B,).
        """
        U_1 = self._stage(U, gamma, dt)
        U_2 = self._stage(U_1, gamma, dt)
        return (U + U_2) / 2

    def rate(self, W: Tensor, gamma: Tensor, flat: Tensor | None = None) -> Tensor:
        """The rate of change of the cell averages, -Σ_d (F_{d,i+1/2} - F_{d,i-1/2}) / spacing_d.

        Arguments:
            W: The primitive variables, of shape (B, D + 2, *S).
            gamma: The ratio of specific heats per trajectory, of shape (B,).
            flat: The cells to be reconstructed as constant, a mask of shape (B, 1, *S).
        """
        total = torch.zeros_like(W)

        for d, h in enumerate(self.spacing):
            cells, dim = W.shape[2 + d], 2 + d
            padded = self._pad(W, d, 2)
            step = padded.diff(dim=dim)
            slope = _half_slope(step.narrow(dim, 0, cells + 2), step.narrow(dim, 1, cells + 2))
            if flat is not None:
                slope = slope.masked_fill(self._pad(flat, d, 1), 0)
            left = padded.narrow(dim, 1, cells + 1) + slope.narrow(dim, 0, cells + 1)
            right = padded.narrow(dim, 2, cells + 1) - slope.narrow(dim, 1, cells + 1)
            flux = hllc_flux(left, right, gamma, axis=d)
            total -= flux.diff(dim=dim) / h

        return total

    def _stage(self, U: Tensor, gamma: Tensor, dt: Tensor) -> Tensor:
        """A forward Euler step that keeps density and pressure positive."""
        W, dt = primitive(U, gamma), _expand(dt, U)
        flat = None

        while True:
            U_1 = U + dt * self.rate(W, gamma, flat)
            bad = ~_is_physical(U_1, gamma)
            if not bad.any():
                return U_1
            grown = self._dilate(bad) if flat is None else flat | self._dilate(bad)
            if flat is not None and torch.equal(grown, flat):
                raise ArithmeticError(
                    f"density or pressure became non-positive in {int(bad.sum())} cells; "
                    f"a smaller Courant number than {self.cfl} may help"
                )
            flat = grown

    def _pad(self, x: Tensor, axis: int, width: int) -> Tensor:
        """Adds `width` ghost cells on both sides of a dimension, by its boundary condition."""
        cells = x.shape[2 + axis]
        index = torch.arange(-width, cells + width, device=x.device)
        index = index % cells if self.periodic[axis] else index.clamp(0, cells - 1)
        return x.index_select(2 + axis, index)

    def _dilate(self, mask: Tensor) -> Tensor:
        """The cells of a mask (B, 1, *S) and their neighbours along each dimension."""
        grown = mask
        for d, cells in enumerate(mask.shape[2:]):
            padded = self._pad(mask, d, 1)
            grown = grown | padded.narrow(2 + d, 0, cells) | padded.narrow(2 + d, 2, cells)
        return grown


def _expand(x: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, 1, ...) with as many axes as `like`."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _sound_speed(rho: Tensor, p: Tensor, gamma: Tensor) -> Tensor:
    return torch.sqrt(gamma * p / rho)


def _is_physical(U: Tensor, gamma: Tensor) -> Tensor:
    """Where density and pressure are positive (and no number is NaN), of shape (B, 1, *S)."""
    W = primitive(U, gamma)
    return (W[:, :1] > 0) & (W[:, -1:] > 0)


def _half_slope(below: Tensor, above: Tensor) -> Tensor:
    """Half the limited slope of a cell, from its differences to the cells below and above.

    The monotonized-central limiter, minmod((a + b) / 2, 2 a, 2 b): face values stay between
    neighbouring averages, so those of density and pressure stay positive.
    """
    low = torch.maximum(below, above).clamp_(max=0)
    high = torch.minimum(below, above).clamp_(min=0)
    return ((below + above) / 4).clamp_(low, high)


def _wave_speeds(
    rho_l: Tensor,
    u_l: Tensor,
    p_l: Tensor,
    rho_r: Tensor,
    u_r: Tensor,
    p_r: Tensor,
    gamma: Tensor,
) -> tuple[Tensor, Tensor]:
    """Bounds on the slowest and fastest wave of a Riemann problem (Einfeldt 1988, eq. 5.1-5.6)."""
    c_l, c_r = _sound_speed(rho_l, p_l, gamma), _sound_speed(rho_r, p_r, gamma)
    w_l, w_r = rho_l.sqrt(), rho_r.sqrt()
    total = w_l + w_r
    u = (w_l * u_l + w_r * u_r) / total
    c_square = (w_l * c_l.square() + w_r * c_r.square()) / total
    jump = (w_l * w_r) / total.square() * (u_r - u_l).square() / 2
    c = torch.sqrt(c_square + jump)
    return torch.minimum(u_l - c_l, u - c), torch.maximum(u_r + c_r, u + c)
