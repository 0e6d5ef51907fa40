"""Convection against linear theory, budgets, symmetries, and the equations themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from data_prep.synthesize import rayleigh_benard
from data_prep.synthesize.initial import unstable_layer
from data_prep.synthesize.rayleigh_benard import RayleighBenardSolver, State, chebyshev_points
from lola_ds.augment import Symmetry, WindowSpec, find_mirror

#: The critical wave number and Rayleigh number between walls (Chandrasekhar 1961, table III).
CRITICAL_WAVE, CRITICAL_RAYLEIGH = 3.117, 1707.762


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(X: int, Y: int, length: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(X) * length / X, chebyshev_points(Y)


def single_wave(X: int, Y: int, length: float, size: float) -> Tensor:
    """The conducting state and a wave of one period, (X, Y)."""
    x, y = grid(X, Y, length)
    wave = np.cos(2 * np.pi * x[:, None] / length) * np.sin(np.pi * y)
    return torch.from_numpy(1 - y + size * wave)


def layer(X: int, Y: int, seed: int = 0) -> Tensor:
    x, y = grid(X, Y, 1.0)
    return torch.from_numpy(unstable_layer(np.random.default_rng(seed), x, y))


def derivatives(X: int, Y: int, length: float):
    """∂_x and ∂_y of values (X, Y) at the output's points, independent of the solver's tables."""
    _, y = grid(X, Y, length)
    slopes = [chebyshev.chebval(2 * y - 1, chebyshev.chebder(row, scl=2)) for row in np.eye(Y)]
    D = np.stack(slopes, axis=1) @ np.linalg.inv(chebyshev.chebvander(2 * y - 1, Y - 1))
    k = 2j * np.pi * np.fft.rfftfreq(X, length / X)[:, None]
    return (
        lambda f: np.fft.irfft(k * np.fft.rfft(f, axis=0), n=X, axis=0),
        lambda f: f @ D.T,
    )


def linear_growth(rayleigh: float, prandtl: float, k: float, size: int = 14) -> float:
    """The fastest growth rate of a wave, by Galerkin's method for the linear equations of v and θ.

    σ (D² - k²) v = ν (D² - k²)² v - k² θ and σ θ = κ (D² - k²) θ + v (Chandrasekhar 1961, §8), with
    v made of (1 - s²)² sʲ and θ of (1 - s²) sʲ, integrated by parts.
    """
    s, weights = np.polynomial.legendre.leggauss(2 * size)

    def table(factor: np.polynomial.Polynomial, order: int) -> np.ndarray:
        powers = [
            factor * np.polynomial.Legendre.basis(j).convert(kind=np.polynomial.Polynomial)
            for j in range(size)
        ]
        return np.stack([2**order * power.deriv(order)(s) for power in powers], axis=1)

    wall = np.polynomial.Polynomial([1, 0, -1])
    v, v_1, v_2 = (table(wall**2, order) for order in (0, 1, 2))
    theta, theta_1 = (table(wall, order) for order in (0, 1))

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a.T @ (weights[:, None] * b) / 2

    none = np.zeros((size, size))
    nu, kappa = math.sqrt(prandtl / rayleigh), 1 / math.sqrt(rayleigh * prandtl)
    stiff = inner(v_1, v_1) + k**2 * inner(v, v)
    bend = inner(v_2, v_2) + 2 * k**2 * inner(v_1, v_1) + k**4 * inner(v, v)
    diffusion = inner(theta_1, theta_1) + k**2 * inner(theta, theta)
    left = np.block([[stiff, none], [none, inner(theta, theta)]])
    right = np.block([[-nu * bend, k**2 * inner(v, theta)], [inner(theta, v), -kappa * diffusion]])
    return float(np.linalg.eigvals(np.linalg.solve(left, right)).real.max())


def growth(rayleigh: Tensor, prandtl: Tensor, k: float) -> np.ndarray:
    """Measured growth rates of a small wave."""
    length = 2 * math.pi / k
    solver = RayleighBenardSolver((8, 16), length)
    start = single_wave(8, 16, length, 1e-10).repeat(len(rayleigh), 1, 1)
    *_, early, late = solver.evolve(solver.rest(start), rayleigh, prandtl, (0, 24, 30))
    energy = [solver.kinetic_energy(state) for state in (early, late)]
    return torch.log(energy[1] / energy[0]).numpy() / 12


def test_convection_starts_at_the_critical_rayleigh_number():
    """Waves decay below and grow above 1707.762, whatever the Prandtl number."""
    rayleigh = column(1000, 1707, 1709)
    rates = growth(rayleigh, column(1, 1, 1), CRITICAL_WAVE)
    assert rates[0] < rates[1] < 0 < rates[2]
    zero = 1707 - 2 * rates[1] / (rates[2] - rates[1])
    assert zero == pytest.approx(CRITICAL_RAYLEIGH, abs=0.05)


def test_growth_rates_are_those_of_linear_theory():
    numbers = [(3000.0, 0.7), (10_000.0, 5.0), (30_000.0, 0.2)]
    measured = growth(*(column(*values) for values in zip(*numbers)), 4.0)
    expected = [linear_growth(rayleigh, prandtl, 4.0) for rayleigh, prandtl in numbers]
    assert measured == pytest.approx(expected, rel=1e-4)


def test_conduction_returns_below_the_critical_number():
    solver = RayleighBenardSolver((16, 8))
    numbers = column(900), column(1)
    *_, late = solver.evolve(solver.rest(layer(16, 8)[None]), *numbers, (0, 30))
    fields = solver.fields(late, *numbers)
    _, y = grid(16, 8, 4)
    assert fields.velocity.abs().max() < 1e-4
    assert np.abs(fields.buoyancy[0].numpy() - (1 - y)).max() < 1e-4


def test_states_satisfy_the_equations():
    """The output's fields, differentiated on their own: no divergence, momentum, heat, gauge."""
    X, Y, length = 24, 24, 2.0
    solver = RayleighBenardSolver((X, Y), length)
    Ra, Pr, step = column(5e3), column(0.7), 1e-3
    start = solver.rest(single_wave(X, Y, length, 0.2)[None])
    *_, state = solver.evolve(start, Ra, Pr, (0, 6))
    states = [state]
    for _ in range(2):
        states.append(solver.step(states[-1], Ra, Pr, column(step)))
    before, now, after = (solver.fields(s, Ra, Pr) for s in states)
    dx, dy = derivatives(X, Y, length)
    u, v = now.velocity[0].movedim(-1, 0).numpy()
    b, p = now.buoyancy[0].numpy(), now.pressure[0].numpy()
    assert np.abs(v).max() > 0.1

    assert np.abs(dx(u) + dy(v)).max() < 1e-10
    accelerations = (after.velocity - before.velocity)[0].movedim(-1, 0).numpy() / (2 * step)
    nu, kappa = math.sqrt(0.7 / 5e3), 1 / math.sqrt(0.7 * 5e3)
    for w, rate, force in ((u, accelerations[0], -dx(p)), (v, accelerations[1], b - dy(p))):
        residual = rate + u * dx(w) + v * dy(w) - nu * (dx(dx(w)) + dy(dy(w))) - force
        assert np.abs(residual).max() < 5e-5
    warming = (after.buoyancy - before.buoyancy)[0].numpy() / (2 * step)
    residual = warming + u * dx(b) + v * dy(b) - kappa * (dx(dx(b)) + dy(dy(b)))
    assert np.abs(residual).max() < 5e-5

    coefficients = np.linalg.inv(chebyshev.chebvander(2 * chebyshev_points(Y) - 1, Y - 1))
    mean = coefficients @ p.mean(axis=0)  # ∫ T_j over [0, 1] is 1 / (1 - j²) for even j
    assert abs(sum(mean[j] / (1 - j * j) for j in range(0, Y, 2))) < 1e-6


def test_advection_does_no_work():
    """Discrete energy changes by buoyancy alone, ⟨v b⟩, and θ² by what is carried through 1 - y."""
    solver = RayleighBenardSolver((32, 12))
    numbers = column(1e7), column(1)  # far from resolved: the identities do not depend on it
    *_, state = solver.evolve(solver.rest(layer(32, 12)[None]), *numbers, (0, 3))
    change, _ = solver._tendency(state)
    _, _, (_, flux) = solver._products(state)
    carried = float((solver._weights * flux.mean(dim=1)).sum())
    counts = torch.full((16, 1), 2.0, dtype=torch.float64)
    counts[0] = 1  # k and -k are one coefficient
    work = float((counts * (state.flow.conj() * change.flow).real).sum())
    mixing = float((counts * (state.heat.conj() * change.heat).real).sum())
    assert abs(carried) > 1e-3
    assert work == pytest.approx(carried, rel=1e-10)
    assert mixing == pytest.approx(carried, rel=1e-10)


def test_steady_rolls_carry_the_same_heat_through_every_height():
    """And the known amount: a Nusselt number of 2.116 at Ra = 5000 (Clever & Busse 1974)."""
    X, Y, length = 16, 16, 2 * math.pi / CRITICAL_WAVE
    solver = RayleighBenardSolver((X, Y), length)
    numbers = column(5000), column(0.71)
    *_, state = solver.evolve(solver.rest(single_wave(X, Y, length, 0.2)[None]), *numbers, (0, 40))
    fields = solver.fields(state, *numbers)
    _, dy = derivatives(X, Y, length)
    kappa = 1 / math.sqrt(5000 * 0.71)
    b, v = fields.buoyancy[0].numpy(), fields.velocity[0, ..., 1].numpy()
    nusselt = ((v * b).mean(axis=0) - kappa * dy(b).mean(axis=0)) / kappa
    assert np.ptp(nusselt) < 5e-3
    assert nusselt.mean() == pytest.approx(2.116, rel=5e-3)


def test_third_order_in_time():
    solver = RayleighBenardSolver((16, 12), 2.0)
    numbers = column(3e4), column(1)
    *_, start = solver.evolve(solver.rest(layer(16, 12)[None]), *numbers, (0, 3))

    def run(steps: int) -> State:
        state = start
        for _ in range(steps):
            state = solver.step(state, *numbers, column(1 / steps))
        return state

    exact = run(160).flow
    errors = [float((run(steps).flow - exact).abs().max()) for steps in (10, 20, 40)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert min(orders) > 2.8


def test_spectral_order_in_space():
    def energy(X: int, Y: int) -> float:
        solver = RayleighBenardSolver((X, Y), 2.0)
        state, numbers = solver.rest(single_wave(X, Y, 2.0, 0.2)[None]), (column(1e4), column(1))
        for _ in range(40):
            state = solver.step(state, *numbers, column(0.05))
        return float(solver.kinetic_energy(state))

    exact = energy(40, 36)
    errors = [abs(energy(X, Y) / exact - 1) for X, Y in ((8, 8), (12, 12), (24, 24))]
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] > 30  # second order would give 2.25
    assert errors[1] / errors[2] > 15  # and 4


def test_mirrored_flows_are_flows():
    """Left and right; and top and bottom with the buoyancy mirrored about 1/2."""
    solver = RayleighBenardSolver((32, 12))
    numbers = column(1e5), column(1)
    b = layer(32, 12)[None]
    b = (1 - torch.from_numpy(chebyshev_points(12))) + (b - b.mean(dim=1, keepdim=True))

    def solve(start: Tensor):
        *_, state = solver.evolve(solver.rest(start), *numbers, (0, 2))
        return solver.fields(state, *numbers)

    plain = solve(b)
    sideways = solve(b.roll(-1, 1).flip(1))
    assert torch.allclose(sideways.buoyancy, plain.buoyancy.roll(-1, 1).flip(1), atol=1e-9)
    expected = plain.velocity.roll(-1, 1).flip(1) * column(-1, 1)
    assert torch.allclose(sideways.velocity, expected, atol=1e-9)
    overturned = solve(1 - b.flip(2))
    assert torch.allclose(overturned.buoyancy, 1 - plain.buoyancy.flip(2), atol=1e-9)
    assert torch.allclose(overturned.velocity, plain.velocity.flip(2) * column(1, -1), atol=1e-9)


def test_mirrored_windows_are_flows():
    """Augmenting with `random_buoyancy_flip`, then a step, is a step, then augmenting."""
    names, grid_y = ("buoyancy", "pressure", "velocity_x", "velocity_y"), chebyshev_points(12)
    mirror = find_mirror(names, "xy", (1,), {"y": {"values": grid_y.tolist()}})
    spec = WindowSpec((0, 0, 1), 2, fixed=(1,), mirror=mirror)
    flip = Symmetry((0, 1), (False, True), (0, 0))
    solver, numbers = RayleighBenardSolver((32, 12)), (column(1e5), column(1))

    def window(start: Tensor) -> np.ndarray:
        *_, state = solver.evolve(solver.rest(start), *numbers, (0, 2))
        fields = solver.fields(state, *numbers)
        parts = [fields.buoyancy, fields.pressure, *fields.velocity.unbind(-1)]
        return torch.stack([part[0] for part in parts]).numpy()[:, None]

    b = layer(32, 12)[None]
    b = (1 - torch.from_numpy(grid_y)) + (b - b.mean(dim=1, keepdim=True))
    start = np.zeros((4, 1, 32, 12))
    start[0] = b.numpy()
    mirrored = torch.from_numpy(flip.window(start, spec)[0])
    assert not torch.allclose(mirrored, b, atol=1e-3)
    np.testing.assert_allclose(window(mirrored), flip.window(window(b), spec), atol=1e-9)


def test_trajectories_do_not_depend_on_their_batch():
    solver = RayleighBenardSolver((32, 8))
    start = torch.stack([layer(32, 8, seed) for seed in (1, 2)])
    numbers = column(1e4, 1e5), column(0.5, 2)
    together = solver.advance(solver.rest(start), *numbers, 2.0)
    for i in range(2):
        part = slice(i, i + 1)
        alone = solver.advance(solver.rest(start[part]), *(n[part] for n in numbers), 2.0)
        assert torch.allclose(together.heat[part], alone.heat, atol=1e-11)


def test_walls_and_start_are_met():
    """Initial fields come back; velocity and θ vanish at the walls."""
    solver = RayleighBenardSolver((32, 16))
    b = single_wave(32, 16, 4.0, 0.1)[None]
    numbers = column(1e5), column(1)
    state = solver.rest(b)
    assert torch.allclose(solver.fields(state, *numbers).buoyancy, b, atol=1e-12)
    *_, state = solver.evolve(state, *numbers, (0, 1))
    fields = solver.fields(state, *numbers)
    to_wall = chebyshev.chebvander([-1, 1], 15) @ np.linalg.inv(
        chebyshev.chebvander(2 * chebyshev_points(16) - 1, 15)
    )
    for values, expected in (
        (fields.buoyancy[0], [1, 0]),
        (fields.velocity[0, ..., 0], [0, 0]),
        (fields.velocity[0, ..., 1], [0, 0]),
    ):
        assert np.abs(values.numpy() @ to_wall.T - expected).max() < 1e-11


def test_a_flow_that_blows_up_is_told(monkeypatch):
    monkeypatch.setattr(rayleigh_benard, "LONGEST_STEP", 10.0)
    solver = RayleighBenardSolver((32, 8), cfl=1e4)
    numbers = column(1e9), column(1)
    with pytest.raises(ArithmeticError, match="32x8 points is too coarse"):
        list(solver.evolve(solver.rest(layer(32, 8)[None]), *numbers, range(0, 2000, 100)))


@pytest.mark.parametrize("shape", [(3, 16), (31, 16), (32, 7)])
def test_resolutions_that_cannot_work_are_refused(shape):
    with pytest.raises(ValueError, match="resolution="):
        RayleighBenardSolver(shape)
