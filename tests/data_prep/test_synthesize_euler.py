"""The Euler solver against exact solutions, conservation, symmetries and positivity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.synthesize.euler import EulerSolver, conserved, hllc_flux, primitive
from data_prep.synthesize.initial import multi_quadrants

SOD = (1.0, 0.0, 1.0), (0.125, 0.0, 0.1)

#: Toro (2009), table 4.1 with the places and times of §6.4: left (ρ, u, p), right, place, time, and
#: the bound on the mean error of the density with 200 cells, in units of its range.
TORO = {
    "sod, with a sonic point": ((1, 0.75, 1), (0.125, 0, 0.1), 0.3, 0.2, 0.01),
    "two rarefactions, near vacuum": ((1, -2, 0.4), (1, 2, 0.4), 0.5, 0.15, 0.01),
    "blast from the left": ((1, 0, 1000), (1, 0, 0.01), 0.5, 0.012, 0.025),
    "two colliding shocks": (
        (5.99924, 19.5975, 460.894),
        (5.99242, -6.19633, 46.095),
        0.4,
        0.035,
        0.015,
    ),
    "slow contact behind a blast": (
        (1, -19.59745, 1000),
        (1, -19.59745, 0.01),
        0.8,
        0.012,
        0.025,
    ),
}


def exact_riemann(
    left: tuple[float, float, float],
    right: tuple[float, float, float],
    gamma: float,
    speed: np.ndarray,
) -> np.ndarray:
    """The exact solution (ρ, u, p) of a Riemann problem at x / t = `speed` (Toro 2009, ch. 4)."""
    sound = [math.sqrt(gamma * p / rho) for rho, _, p in (left, right)]

    def wave(p: float, side: int) -> tuple[float, float]:
        """The velocity's jump across a wave to the pressure p (eq. 4.6, 4.7), and its slope."""
        rho, _, p_0 = (left, right)[side]
        if p > p_0:
            a, b = 2 / ((gamma + 1) * rho), (gamma - 1) / (gamma + 1) * p_0
            root = math.sqrt(a / (p + b))
            return (p - p_0) * root, root * (1 - (p - p_0) / (2 * (p + b)))
        power = (p / p_0) ** ((gamma - 1) / (2 * gamma))
        return (
            2 * sound[side] / (gamma - 1) * (power - 1),
            power / p * p_0 / (rho * sound[side]),
        )

    p = (left[2] + right[2]) / 2
    for _ in range(100):
        (f_l, d_l), (f_r, d_r) = wave(p, 0), wave(p, 1)
        p = max(p - (f_l + f_r + right[1] - left[1]) / (d_l + d_r), 1e-3 * p)
    u = (left[1] + right[1] + wave(p, 1)[0] - wave(p, 0)[0]) / 2

    solution = np.empty((3, len(speed)))
    for k, s in enumerate(speed):
        side = 0 if s < u else 1
        sign = 1 if side == 0 else -1  # the right side is the left one, mirrored
        rho_0, u_0, p_0 = (left, right)[side]
        u_0, c_0, xi, u_m = sign * u_0, sound[side], sign * s, sign * u
        ratio = (gamma - 1) / (gamma + 1)
        if p > p_0:
            shock = u_0 - c_0 * math.sqrt((gamma + 1) / (2 * gamma) * (p / p_0 - 1) + 1)
            rho_m = rho_0 * (p / p_0 + ratio) / (ratio * p / p_0 + 1)
            state = (rho_0, u_0, p_0) if xi < shock else (rho_m, u_m, p)
        else:
            c_m = c_0 * (p / p_0) ** ((gamma - 1) / (2 * gamma))
            if xi < u_0 - c_0:
                state = (rho_0, u_0, p_0)
            elif xi > u_m - c_m:
                state = (rho_0 * (p / p_0) ** (1 / gamma), u_m, p)
            else:
                c = 2 / (gamma + 1) * (c_0 + (gamma - 1) / 2 * (u_0 - xi))
                state = (
                    rho_0 * (c / c_0) ** (2 / (gamma - 1)),
                    xi + c,
                    p_0 * (c / c_0) ** (2 * gamma / (gamma - 1)),
                )
        solution[:, k] = state[0], sign * state[1], state[2]
    return solution


def solve_tube(
    left, right, cells: int, place: float, time: float, axis: int = 0, width: int = 1
) -> Tensor:
    """Solves a Riemann problem along an axis of a 2-d grid, `width` cells wide, in float64.

    Returns the final (ρ, u, v, p) with x along the tube, of shape (1, 4, cells, width).
    """
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    low, high = (torch.tensor([rho, u, 0, p], dtype=torch.float64) for rho, u, p in (left, right))
    W = torch.where(x < place, low[:, None], high[:, None])[None, ..., None].repeat(1, 1, 1, width)
    turn = transpose if axis == 1 else lambda state: state
    gamma = torch.full((1,), 1.4, dtype=torch.float64)
    solver = EulerSolver((1 / cells, 1 / cells), (axis == 1, axis == 0))
    *_, U = solver.evolve(conserved(turn(W), gamma), gamma, (0, time))
    return turn(primitive(U, gamma))


def transpose(W: Tensor) -> Tensor:
    """Exchanges x and y of a batch of states."""
    return W[:, [0, 2, 1, 3]].transpose(2, 3)


def mirror(W: Tensor) -> Tensor:
    """Turns x around."""
    return W.flip(2) * torch.tensor([1, -1, 1, 1], dtype=W.dtype)[:, None, None]


def quadrants(cells: int, periodic: bool, gamma=(1.2, 1.4, 1.7), seed: int = 0):
    """A batch of random states of different γ, in float64."""
    rng = np.random.default_rng(seed)
    U = [multi_quadrants(rng, (cells, cells), (periodic, periodic), g) for g in gamma]
    return torch.from_numpy(np.stack(U)), torch.tensor(gamma, dtype=torch.float64)


def density_error(cells: int) -> float:
    """The mean error of the density in Sod's tube."""
    W = solve_tube(*SOD, cells, place=0.5, time=0.2)
    x = (np.arange(cells) + 0.5) / cells
    exact = exact_riemann(*SOD, 1.4, (x - 0.5) / 0.2)
    return float(np.abs(W[0, 0, :, 0].numpy() - exact[0]).mean())


def test_exact_riemann_star_state():
    """Toro (2009), table 4.2: p* = 0.30313, u* = 0.92745 for Sod's problem."""
    rho, u, p = exact_riemann(*SOD, 1.4, np.array([0.9, 0.95]))
    assert p == pytest.approx([0.30313] * 2, abs=1e-5)
    assert u == pytest.approx([0.92745] * 2, abs=1e-5)
    assert rho == pytest.approx([0.42632, 0.26557], abs=1e-5)


def test_sod_converges_to_the_exact_solution():
    errors = [density_error(cells) for cells in (100, 200, 400)]
    assert errors[0] < 6e-3
    # First order, which discontinuities limit any scheme to; contacts are a little slower.
    assert all(coarse / fine > 1.6 for coarse, fine in itertools.pairwise(errors))


@pytest.mark.parametrize("name", TORO)
def test_riemann_problems(name):
    left, right, place, time, bound = TORO[name]
    cells = 200
    W = solve_tube(left, right, cells, place, time)[0, :, :, 0].numpy()
    x = (np.arange(cells) + 0.5) / cells
    exact = exact_riemann(left, right, 1.4, (x - place) / time)
    assert W[0].min() > 0
    assert W[3].min() > 0
    assert np.abs(W[2]).max() == 0
    error = np.abs(W[0] - exact[0]).mean() / np.ptp(exact[0])
    assert error < bound


def test_tube_is_the_same_along_both_axes():
    along_x, along_y = (solve_tube(*SOD, 64, 0.5, 0.1, axis, width=4) for axis in (0, 1))
    assert torch.equal(along_x, along_y)
    assert torch.equal(along_x, along_x[..., :1].expand_as(along_x))


def test_flux_is_consistent_and_resolves_contacts():
    """Equal states give the physical flux; a resting contact gives pressure alone, exactly."""
    gamma = torch.tensor([1.4], dtype=torch.float64)
    W = torch.tensor([[1.3, 0.4, -0.7, 0.9]], dtype=torch.float64)
    U = conserved(W, gamma)
    rho, u, v, p = W[0]
    expected = torch.stack((rho * u, rho * u * u + p, rho * u * v, u * (U[0, 3] + p)))
    assert torch.allclose(hllc_flux(W, W, gamma, 0)[0], expected, rtol=1e-14)

    left = torch.tensor([[1.0, 0.0, 0.3, 0.8]], dtype=torch.float64)
    right = torch.tensor([[5.0, 0.0, -0.2, 0.8]], dtype=torch.float64)
    expected = torch.tensor([[0, 0.8, 0, 0]], dtype=torch.float64)
    assert torch.equal(hllc_flux(left, right, gamma, 0), expected)


def test_density_wave_second_order():
    """A smooth wave carried by a uniform flow, against its exact cell averages."""
    velocity, time = (1.0, 0.5), 0.2
    gamma = torch.tensor([1.4], dtype=torch.float64)

    def averages(cells: int, t: float) -> Tensor:
        x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        phase = 2 * math.pi * (x[:, None] - velocity[0] * t + x[None] - velocity[1] * t)
        rho = 1 + 0.2 * math.sin(math.pi / cells) ** 2 / (math.pi / cells) ** 2 * torch.sin(phase)
        u, v = (torch.full_like(rho, speed) for speed in velocity)
        return conserved(torch.stack((rho, u, v, torch.ones_like(rho)))[None], gamma)

    def error(cells: int) -> float:
        solver = EulerSolver((1 / cells, 1 / cells), (True, True))
        *_, U = solver.evolve(averages(cells, 0), gamma, (0, time))
        return float((U - averages(cells, time))[:, 0].abs().mean())

    errors = [error(cells) for cells in (32, 64, 128)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert min(orders) > 1.8


def test_periodic_box_conserves_to_roundoff():
    U, gamma = quadrants(32, periodic=True)
    solver = EulerSolver((1 / 32, 1 / 32), (True, True))
    scale = U.abs().mean(dim=(2, 3))
    for later in solver.evolve(U, gamma, (0, 0.1, 0.2)):
        drift = (later.mean(dim=(2, 3)) - U.mean(dim=(2, 3))).abs() / scale
        assert drift.max() < 1e-13


@pytest.mark.parametrize("periodic", [True, False])
def test_exchanging_axes_commutes_exactly(periodic):
    U, gamma = quadrants(32, periodic)
    solver = EulerSolver((1 / 32, 1 / 32), (periodic, periodic))
    expected = transpose(solver.advance(U, gamma, 0.1))
    assert torch.equal(solver.advance(transpose(U), gamma, 0.1), expected)


@pytest.mark.parametrize("periodic", [True, False])
def test_mirroring_commutes(periodic):
    U, gamma = quadrants(32, periodic)
    solver = EulerSolver((1 / 32, 1 / 32), (periodic, periodic))
    expected = mirror(solver.advance(U, gamma, 0.1))
    assert torch.allclose(solver.advance(mirror(U), gamma, 0.1), expected, rtol=1e-11, atol=1e-11)


def test_rolling_a_periodic_box_commutes_exactly():
    U, gamma = quadrants(16, periodic=True)
    solver = EulerSolver((1 / 16, 1 / 16), (True, True))
    expected = solver.advance(U, gamma, 0.1).roll((3, 5), (2, 3))
    assert torch.equal(solver.advance(U.roll((3, 5), (2, 3)), gamma, 0.1), expected)


def test_trajectories_do_not_depend_on_their_batch():
    U, gamma = quadrants(16, periodic=True)
    solver = EulerSolver((1 / 16, 1 / 16), (True, True))
    together = solver.advance(U, gamma, 0.1)
    alone = [solver.advance(U[i : i + 1], gamma[i : i + 1], 0.1) for i in range(len(U))]
    assert torch.equal(together, torch.cat(alone))


def test_waves_leave_through_open_sides():
    """A pressure pulse at rest leaves almost nothing behind; a uniform flow stays as it is."""
    cells = 32
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 0.5
    gamma = torch.tensor([1.4], dtype=torch.float64)
    pulse = 1e-2 * torch.exp(-100 * (x[:, None] ** 2 + x[None] ** 2))
    W = torch.stack((1 + pulse / 1.4, 0 * pulse, 0 * pulse, 1 + pulse))[None]
    solver = EulerSolver((1 / cells, 1 / cells), (False, False))
    *_, U = solver.evolve(conserved(W, gamma), gamma, (0, 1.5))
    assert (primitive(U, gamma)[0, 3] - 1).abs().max() < 1e-4

    W = torch.tensor([1.0, 2.0, -0.5, 1.0], dtype=torch.float64)[None, :, None, None]
    U = conserved(W.repeat(1, 1, cells, cells), gamma)
    assert torch.equal(solver.advance(U, gamma, 0.1), U)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strong_waves_stay_positive_and_conserved(dtype, monkeypatch):
    """Six decades of pressure and four of density; the first-order repetition must take part."""
    cells, gamma = 24, torch.full((2,), 1.4, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    W = torch.empty_like(random)
    W[:, 0], W[:, 1:3] = 10 ** (-4 * random[:, 0]), 10 * (random[:, 1:3] - 0.5)
    W[:, 3] = 10 ** (2 - 6 * random[:, 3])
    W = W.repeat_interleave(cells // 4, 2).repeat_interleave(cells // 4, 3).to(dtype)

    repeated = []
    dilate = EulerSolver._dilate
    monkeypatch.setattr(
        EulerSolver, "_dilate", lambda self, bad: repeated.append(1) or dilate(self, bad)
    )
    solver = EulerSolver((1 / cells, 1 / cells), (True, True))
    U = conserved(W, gamma)
    later = solver.advance(U, gamma, 0.006)

    assert repeated
    W = primitive(later, gamma)
    assert W[:, 0].min() > 0
    assert W[:, 3].min() > 0
    drift = (later - U).sum(dim=(2, 3)).abs() / U.abs().sum(dim=(2, 3))
    assert drift.max() < 100 * torch.finfo(dtype).eps


def test_one_and_three_dimensions():
    """The same tube in 1, 2 and 3 dimensions; the added axes change the time steps only."""
    gamma = torch.tensor([1.4], dtype=torch.float64)
    W = torch.ones(1, 5, 48, 3, 3, dtype=torch.float64)
    W[:, 1:4] = 0
    W[:, 0, 24:], W[:, 4, 24:] = 0.125, 0.1
    h = 1 / 48
    solver = EulerSolver((h, h, h), (False, True, True))
    dt = solver.time_step(conserved(W, gamma), gamma)

    solutions = []
    for dims in (1, 2, 3):
        keep = [0, *range(1, 1 + dims), 4]
        part = W[:, keep][(..., *(0,) * (3 - dims))]
        solver = EulerSolver((h,) * dims, (False, True, True)[:dims])
        U = conserved(part, gamma)
        for _ in range(10):
            U = solver.step(U, gamma, dt)
        while U.ndim > 3:
            U = U[..., 0]
        solutions.append(U[:, [0, 1, -1]])
    assert torch.allclose(solutions[0], solutions[1], rtol=1e-12)
    assert torch.allclose(solutions[0], solutions[2], rtol=1e-12)


def test_unphysical_initial_states_are_refused():
    U, gamma = quadrants(16, periodic=True)
    U[1, 0, 3, 4] = -1
    solver = EulerSolver((1 / 16, 1 / 16), (True, True))
    with pytest.raises(ValueError, match="not positive"):
        next(solver.evolve(U, gamma, (0, 0.1)))


@pytest.mark.parametrize("periodic", [True, False])
def test_initial_states_are_cell_averages(periodic):
    """A coarse grid holds the averages of a fine one; same generator, same problem."""
    fine, coarse = (
        multi_quadrants(np.random.default_rng(5), (cells, cells), (periodic, periodic), 1.4)
        for cells in (96, 24)
    )
    means = fine.reshape(4, 24, 4, 24, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(coarse, means, rtol=1e-12)


def test_initial_states_fill_the_box_with_constant_quadrants():
    U = multi_quadrants(np.random.default_rng(0), (64, 64), (False, False), 1.4)
    W = primitive(torch.from_numpy(U)[None], torch.tensor([1.4], dtype=torch.float64))[0]
    values, counts = np.unique(W[0].round(decimals=9), return_counts=True)
    assert (values > 0).all()
    assert 4 <= (counts > 64).sum() <= 16
    assert counts[counts > 64].sum() > 0.7 * 64 * 64
