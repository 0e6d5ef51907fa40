r"""A Galerkin spectral method for two-dimensional Rayleigh-Bénard convection, batched in torch.

A fluid between a warm floor and a cold ceiling, 0 ≤ x < L periodic and 0 ≤ y ≤ 1, obeys the
Boussinesq equations in units of the height and of the free fall through it:

.. math::
    ∂_t u + u·∇u &= -∇p + b e_y + ν Δu,    ∇·u = 0,    ν = (Ra / Pr)^{-1/2}, \\
    ∂_t b + u·∇b &= κ Δb,                              κ = (Ra Pr)^{-1/2},

with buoyancy b = 1 and 0 and velocity u = (u, v) = 0 at the floor and ceiling; Ra and Pr are the
Rayleigh and Prandtl numbers. The fluid rests below Ra = 1707.76 (Chandrasekhar 1961, §15).

Velocities come from a stream function, u = (∂_y ψ, -∂_x ψ), so they are free of divergence. For the
wave number k of x, ψ is a combination of Legendre polynomials with ψ = ψ' = 0 at the walls (Shen
1994); the mean flow (k = 0) and θ = b - (1 - y) of some that vanish there. The equations are
tested with the same functions, which removes the pressure, and the eigenmodes of viscosity in each
of these spaces are taken as coordinates: modes of velocity are orthonormal and decay at rates ν λ.
Advection enters as ω × u, ω = ∂_x v - ∂_y u, and as the divergence of u b. Products are integrated
exactly: 3/2 as many points as modes along x, and Gauss quadrature along y. So the discrete
equations have the energy budget of the continuous ones. Time advances by a Runge-Kutta scheme of
third order with exact diffusion (ETD3RK; Cox & Matthews 2002, eq. 23-25).

Symbols: B trajectories; X × Y points of the output, uniform along x and Gauss-Chebyshev along y;
K = X / 2 wave numbers; Q points of quadrature; n = Y - 4 modes of velocity, m = Y - 2 of buoyancy
for each wave number. All is float64.

References:
    S. Chandrasekhar, Hydrodynamic and Hydromagnetic Stability, Oxford 1961.
    J. Shen, Efficient spectral-Galerkin method I, SIAM J. Sci. Comput. 15 (1994).
    S. M. Cox, P. C. Matthews, Exponential time differencing for stiff systems, J. Comput. Phys. 176
        (2002).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

#: The longest time step, in free-fall times, which resolves stirring by buoyancy; and the shortest,
#: below which the flow is taken to have blown up.
LONGEST_STEP = 0.1
SHORTEST_STEP = 1e-6


@dataclass(frozen=True)
class State:
    """A batch of flows as complex coefficients of the modes: `flow` (B, K, n), `heat` (B, K, m)."""

    flow: Tensor
    heat: Tensor


@dataclass(frozen=True)
class Fields:
    """Values at the output's points: `buoyancy`, `pressure` (B, X, Y), `velocity` (B, X, Y, 2)."""

    buoyancy: Tensor
    pressure: Tensor
    velocity: Tensor


def chebyshev_points(size: int) -> np.ndarray:
    """The Gauss-Chebyshev points (1 - cos(π (j + 1/2) / size)) / 2 of [0, 1], increasing."""
    return (1 - np.cos(np.pi * (np.arange(size) + 0.5) / size)) / 2


class RayleighBenardSolver:
    """The Boussinesq equations between two walls.

    Arguments:
        resolution: The points (X, Y) of the output, X even.
        length: The period L along x, in heights.
        cfl: The Courant number: the time step is `cfl / max(|u| / dx + |v| / dy)`, with the
            spacings of the output. The scheme is stable up to √3 / π ≈ 0.55.
    """

    def __init__(self, resolution: tuple[int, int], length: float = 4.0, cfl: float = 0.5) -> None:
        X, Y = resolution
        if X < 4 or X % 2 or Y < 8:
            raise ValueError(f"resolution={X}x{Y}: an even number of at least 4 by at least 8")
        self.resolution, self.length, self.cfl = (X, Y), length, cfl
        self.k = 2 * math.pi / length * torch.arange(X // 2, dtype=torch.float64)

        nodes, weights = legendre.leggauss(3 * Y // 2)
        y, points = (1 + nodes) / 2, chebyshev_points(Y)
        self._y, self._points, self._weights = (
            torch.from_numpy(values) for values in (y, points, weights / 2)
        )
        self._flow = _FlowModes(Y, self.k.numpy(), y, points)
        self._heat = _HeatModes(Y, self.k.numpy(), y, points)
        self._pressure = _PressureModes(Y, self.k.numpy(), y, points)
        # The local spacing of the output's points at the nodes: dy = sin(ϑ) dϑ / 2.
        dy = np.sqrt(1 - nodes**2) * math.pi / (2 * Y)
        self._spacing = length / X, torch.from_numpy(dy)

    def rest(self, buoyancy: Tensor) -> State:
        """The state at rest with a buoyancy given at the points of the output, (B, X, Y).

        Walls keep their temperature: what of it differs there is dropped.
        """
        X, _ = self.resolution
        theta = torch.fft.rfft(buoyancy.double() - (1 - self._points), dim=1, norm="forward")
        heat = _apply(self._heat.fit, theta[:, : X // 2])
        flow = heat.new_zeros(*heat.shape[:2], self._flow.rate.shape[1])
        return State(flow, heat)

    def evolve(
        self, state: State, rayleigh: Tensor, prandtl: Tensor, times: Sequence[float]
    ) -> Iterator[State]:
        """Solves from `times[0]`, and yields the state at each of `times`, the first included.

        Arguments:
            state: The state at `times[0]`.
            rayleigh, prandtl: The numbers Ra and Pr of each trajectory, of shape (B,).
            times: Increasing times, in free-fall times.

        Raises:
            ArithmeticError: The solution blew up: the grid is too coarse.
        """
        yield state
        for start, stop in pairwise(times):
            state = self.advance(state, rayleigh, prandtl, stop - start)
            yield state

    def advance(self, state: State, rayleigh: Tensor, prandtl: Tensor, duration: float) -> State:
        """Advances every trajectory by `duration`, each in as many steps as it needs."""
        left = torch.full((len(state.flow),), duration, dtype=torch.float64)
        while left.any():
            first, rate = self._tendency(state)
            limit = (self.cfl / rate).clamp(max=LONGEST_STEP)
            if not (limit > SHORTEST_STEP).all():
                X, Y = self.resolution
                raise ArithmeticError(
                    f"the flow blew up: a grid of {X}x{Y} points is too coarse for a Rayleigh "
                    f"number of {float(rayleigh.max()):g}"
                )
            dt = left / torch.ceil(left / limit).clamp(min=1)  # 0 where nothing is left: no change
            state = self._step(state, first, rayleigh, prandtl, dt)
            left = left - dt
        return state

    def step(self, state: State, rayleigh: Tensor, prandtl: Tensor, dt: Tensor) -> State:
        """One time step; `dt`, of shape (B,), is that of each trajectory."""
        return self._step(state, self._tendency(state)[0], rayleigh, prandtl, dt)

    def fields(self, state: State, rayleigh: Tensor, prandtl: Tensor) -> Fields:
        """Values at the points of the output; the pressure has mean zero.

        The pressure solves ∫ ∇q·∇P = ∫ ∇q·(b e_y - ω × u + ν Δu) for all polynomials q, with
        P = p + |u|² / 2 (∇q is orthogonal to ∂_t u).
        """
        X, _ = self.resolution
        flow, heat, modes = state.flow, state.heat, self._pressure
        u = _to_grid(_apply(self._flow.u_points, flow), X)
        v = _to_grid(-1j * _apply(self._flow.v_points, flow), X)
        b = _to_grid(_apply(self._heat.points, heat), X) + 1 - self._points

        _, force, _ = self._products(state)
        f_x, f_y = (self._weights * _to_waves(f, X) for f in force)
        wall = _apply(self._flow.w_walls, flow)  # ν ∫ ∇q·Δu is the jump of i k q ω
        nu = (prandtl / rayleigh).sqrt()[:, None, None]
        source = _apply(modes.slope.mT, f_y) - 1j * self.k[:, None] * _apply(modes.value.mT, f_x)
        source = source + 1j * self.k[:, None] * nu * _apply(modes.walls.mT, wall)
        total = _to_grid(_apply(modes.points @ modes.inverse, source), X)
        energy = self.kinetic_energy(state)[:, None, None]
        pressure = total - (u.square() + v.square()) / 2 + energy
        return Fields(b, pressure, torch.stack((u, v), dim=-1))

    def kinetic_energy(self, state: State) -> Tensor:
        """The mean of |u|² / 2 of each trajectory, of shape (B,)."""
        power = state.flow.abs().square().sum(dim=2)
        return power[:, 0] / 2 + power[:, 1:].sum(dim=1)

    def _step(
        self, state: State, first: State, rayleigh: Tensor, prandtl: Tensor, dt: Tensor
    ) -> State:
        """ETD3RK, from the tendency `first` at the start of the step."""
        nu, kappa = (prandtl / rayleigh).sqrt(), (rayleigh * prandtl).rsqrt()
        schemes = (
            _Exponential(-(nu * dt)[:, None, None] * self._flow.rate, dt),
            _Exponential(-(kappa * dt)[:, None, None] * self._heat.rate, dt),
        )

        def combine(method: str, *tendencies: State) -> State:
            flow, heat = schemes
            return State(
                getattr(flow, method)(state.flow, *(part.flow for part in tendencies)),
                getattr(heat, method)(state.heat, *(part.heat for part in tendencies)),
            )

        second, _ = self._tendency(combine("middle", first))
        third, _ = self._tendency(combine("end", first, second))
        return combine("step", first, second, third)

    def _products(
        self, state: State
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """At the points of quadrature: the Courant rate (B,), b e_y - ω × u, and u b."""
        size = 3 * self.resolution[0] // 2
        u = _to_grid(_apply(self._flow.u, state.flow), size)
        v = _to_grid(-1j * _apply(self._flow.v, state.flow), size)
        w = _to_grid(_apply(self._flow.w, state.flow), size)
        b = _to_grid(_apply(self._heat.value, state.heat), size) + 1 - self._y
        dx, dy = self._spacing
        rate = (u.abs() / dx + v.abs() / dy).flatten(start_dim=1).amax(dim=1)
        return rate, (w * v, b - w * u), (u * b, v * b)

    def _tendency(self, state: State) -> tuple[State, Tensor]:
        """The rate of change without diffusion, and the Courant rate of each trajectory."""
        X, _ = self.resolution
        rate, force, flux = self._products(state)
        f_x, f_y, q_x, q_y = (self._weights * _to_waves(f, X) for f in (*force, *flux))
        k = self.k[:, None]
        flow = _apply(self._flow.u.mT, f_x) + 1j * _apply(self._flow.v.mT, f_y)
        heat = _apply(self._heat.slope.mT, q_y) - 1j * k * _apply(self._heat.value.mT, q_x)
        return State(flow, heat), rate


class _Exponential:
    """The stages of ETD3RK for y' = c y + N(y): `c_dt` is c dt ≤ 0, (B, K, n), and `dt` (B,)."""

    def __init__(self, c_dt: Tensor, dt: Tensor) -> None:
        self.dt = dt[:, None, None]
        self.half, (self.half_1, _, _) = (c_dt / 2).exp(), _phi(c_dt / 2)
        self.whole, self.phi = c_dt.exp(), _phi(c_dt)

    def middle(self, y: Tensor, first: Tensor) -> Tensor:
        return self.half * y + self.dt / 2 * self.half_1 * first

    def end(self, y: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return self.whole * y + self.dt * self.phi[0] * (2 * second - first)

    def step(self, y: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        phi_1, phi_2, phi_3 = self.phi
        change = (phi_1 - 3 * phi_2 + 4 * phi_3) * first
        change = change + (4 * phi_2 - 8 * phi_3) * second + (4 * phi_3 - phi_2) * third
        return self.whole * y + self.dt * change


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ_1, φ_2, φ_3 of z ≤ 0: φ_0 = exp, φ_{i+1}(z) = (φ_i(z) - φ_i(0)) / z."""
    series = [sum(z**j / math.factorial(i + j) for j in range(16)) for i in (1, 2, 3)]
    safe = torch.where(z.abs() < 1, -1.0, z)
    phi_1 = torch.expm1(safe) / safe
    phi_2 = (phi_1 - 1) / safe
    phi_3 = (phi_2 - 1 / 2) / safe
    small = z.abs() < 1
    exact = (phi_1, phi_2, phi_3)
    phi_1, phi_2, phi_3 = (torch.where(small, s, e) for s, e in zip(series, exact))
    return phi_1, phi_2, phi_3


class _FlowModes:
    """Modes of velocity for each k: `rate` (K, n) and tables (K, points, n) of their values.

    u = Σ u_j a_j, v = -i Σ v_j a_j, ω = Σ w_j a_j, and the modes are orthonormal in ∫ |u|² dy. For
    k ≠ 0 they solve B ψ = λ A ψ, A = ∫ ∇φ·∇ψ, B = ∫ Δφ Δψ over clamped stream functions.
    """

    def __init__(self, Y: int, k: np.ndarray, y: np.ndarray, points: np.ndarray) -> None:
        stream = _Basis(_clamped(Y))
        mean = _Basis(_vanishing(Y - 2))
        mass, stiff, bend = (stream.gram(order) for order in (0, 1, 2))
        modes = [_eigenmodes(mean.gram(1), mean.gram(0))]
        modes += [
            _eigenmodes(bend + 2 * q**2 * stiff + q**4 * mass, stiff + q**2 * mass) for q in k[1:]
        ]
        self.rate = torch.stack([rate for rate, _ in modes])

        def tables(places: np.ndarray) -> list[Tensor]:
            value, slope, curve = (stream.values(places, order) for order in (0, 1, 2))
            u, slope_u = mean.values(places, 0), mean.values(places, 1)
            vectors = [vector for _, vector in modes]
            later = list(zip(k[1:], vectors[1:]))
            return [
                torch.stack([u @ vectors[0], *(slope @ e for _, e in later)]),
                torch.stack([0 * u @ vectors[0], *(q * value @ e for q, e in later)]),
                torch.stack(
                    [-slope_u @ vectors[0], *((q**2 * value - curve) @ e for q, e in later)]
                ),
            ]

        self.u, self.v, self.w = tables(y)
        self.u_points, self.v_points, _ = tables(points)
        *_, self.w_walls = tables(np.array([0.0, 1.0]))


class _HeatModes:
    """Modes of θ, the same for each k: `rate` (K, m), and tables (points, m)."""

    def __init__(self, Y: int, k: np.ndarray, y: np.ndarray, points: np.ndarray) -> None:
        basis = _Basis(_vanishing(Y))
        rate, vectors = _eigenmodes(basis.gram(1), basis.gram(0))
        self.rate = rate + torch.from_numpy(k**2)[:, None]
        self.value, self.slope = (basis.values(y, order) @ vectors for order in (0, 1))
        self.points = basis.values(points, 0) @ vectors
        self.fit = torch.linalg.pinv(self.points)


class _PressureModes:
    """Polynomials for the pressure: tables (points, Y), and `inverse` (K, Y, Y) of ∫ ∇q·∇q.

    The constant of k = 0, whose row is zero, is pinned to zero.
    """

    def __init__(self, Y: int, k: np.ndarray, y: np.ndarray, points: np.ndarray) -> None:
        basis = _Basis(np.eye(Y))
        self.value, self.slope = (basis.values(y, order) for order in (0, 1))
        self.points = basis.values(points, 0)
        sign = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        self.walls = sign * basis.values(np.array([0.0, 1.0]), 0)
        matrix = basis.gram(1) + torch.from_numpy(k**2)[:, None, None] * basis.gram(0)
        matrix[0, 0, 0] = 1
        self.inverse = torch.linalg.inv(matrix)


class _Basis:
    """Polynomials on [0, 1], given by Legendre coefficients, (number, degree + 1)."""

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = coefficients

    def values(self, y: np.ndarray, order: int) -> Tensor:
        """The derivatives of some order at places y, of shape (places, number)."""
        derived = legendre.legder(self.coefficients, m=order, scl=2, axis=1)
        return torch.from_numpy(np.ascontiguousarray(legendre.legval(2 * y - 1, derived.T).T))

    def gram(self, order: int) -> Tensor:
        """∫ f_i f_j dy of the derivatives f of some order."""
        nodes, weights = legendre.leggauss(self.coefficients.shape[1])
        values = self.values((1 + nodes) / 2, order)
        return values.mT @ (torch.from_numpy(weights / 2)[:, None] * values)


def _clamped(Y: int) -> np.ndarray:
    """Polynomials below degree Y that vanish at both walls, as their slopes do (Shen, eq. 3.4)."""
    coefficients = np.zeros((Y - 4, Y))
    for j, row in enumerate(coefficients):
        row[[j, j + 2, j + 4]] = 1, -2 * (2 * j + 5) / (2 * j + 7), (2 * j + 3) / (2 * j + 7)
    return coefficients


def _vanishing(Y: int) -> np.ndarray:
    """Polynomials below degree Y that vanish at both walls (Shen, eq. 2.5)."""
    coefficients = np.zeros((Y - 2, Y))
    for j, row in enumerate(coefficients):
        row[[j, j + 2]] = 1, -1
    return coefficients


def _eigenmodes(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Solves B e = λ A e with eᵀ A e = 1: λ (n,), and e as columns (n, n)."""
    # Scaled to a unit diagonal, A is well-conditioned.
    scale = A.diagonal().rsqrt()
    root = torch.linalg.cholesky(scale[:, None] * A * scale)
    half = torch.linalg.solve_triangular(root, scale[:, None] * B * scale, upper=False)
    rate, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    return rate, scale[:, None] * torch.linalg.solve_triangular(root.mT, vectors, upper=True)


def _apply(table: Tensor, x: Tensor) -> Tensor:
    """A real table, (K, P, n) or (P, n) for all k, times complex x (B, K, n): (B, K, P)."""
    columns = torch.view_as_real(x).permute(1, 2, 0, 3)
    result = table @ columns.flatten(start_dim=2)
    result = result.unflatten(2, columns.shape[2:]).permute(2, 0, 1, 3)
    return torch.view_as_complex(result.contiguous())


def _to_grid(waves: Tensor, size: int) -> Tensor:
    """Amplitudes (B, K, P) -> values (B, size, P) along x."""
    return torch.fft.irfft(waves, n=size, dim=1, norm="forward")


def _to_waves(values: Tensor, X: int) -> Tensor:
    """Values (B, size, P) along x -> the amplitudes (B, X / 2, P) below wave number X / 2."""
    return torch.fft.rfft(values, dim=1, norm="forward")[:, : X // 2]
