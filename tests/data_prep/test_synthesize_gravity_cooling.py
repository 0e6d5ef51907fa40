"""Self-gravity and cooling against exact solutions and conservation laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.synthesize.euler import conserved, primitive
from data_prep.synthesize.families import CloudUnits
from data_prep.synthesize.gravity_cooling import (
    CUBE_POTENTIAL,
    Cooling,
    GravityCoolingSolver,
    cooling_function,
)
from data_prep.synthesize.initial import turbulent_velocity

GAMMA = torch.tensor([5 / 3], dtype=torch.float64)
COOLING = CloudUnits(44.5).cooling(1.0, 5 / 3)


def solver_of(cells: int, periodic: bool = False, **options) -> GravityCoolingSolver:
    return GravityCoolingSolver((1 / cells,) * 3, (periodic,) * 3, **options)


def centres(cells: int) -> Tensor:
    """Places relative to the middle of the unit cube, (3, X, Y, Z)."""
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 0.5
    return torch.stack(torch.meshgrid(x, x, x, indexing="ij"))


def ball(cells: int, width: float = 0.12) -> Tensor:
    """A resting Gaussian cloud of gas in thin gas, conserved variables (1, 5, X, Y, Z)."""
    rho = 1e-2 + torch.exp(-centres(cells).square().sum(0) / (2 * width**2))
    W = torch.stack((rho, 0 * rho, 0 * rho, 0 * rho, 0.02 * rho))[None]
    return conserved(W, GAMMA)


def cloud(cells: int, cooling: Cooling | None = None) -> tuple[GravityCoolingSolver, Tensor]:
    """A turbulent cloud in a periodic box that attracts itself."""
    v = torch.from_numpy(turbulent_velocity(np.random.default_rng(0), cells))
    rho = 0.3 + 0.1 * torch.sin(2 * math.pi * centres(cells)[:1])
    U = conserved(torch.cat((rho, v, 0.02 * rho))[None], GAMMA)
    return solver_of(cells, periodic=True, gravity=1.0, cooling=cooling), U


def test_gravity_of_a_gaussian_ball_at_second_order():
    """Φ = -G M erf(r / (√2 s)) / r."""
    s = 0.1

    def errors(cells: int) -> tuple[float, float]:
        place = centres(cells)
        r = place.norm(dim=0)
        rho = torch.exp(-(r**2) / (2 * s**2)) / (2 * math.pi * s**2) ** 1.5
        inside = torch.erf(r / (s * math.sqrt(2)))
        phi = -2 * inside / r
        mass = inside - math.sqrt(2 / math.pi) * r / s * torch.exp(-(r**2) / (2 * s**2))
        force = -2 * mass / r**3 * place
        solver = solver_of(cells, gravity=2.0)
        inner = (0, *(slice(1, -1),) * 3)
        phi_error = (solver.potential(rho[None])[inner] - phi).abs().max() / phi.abs().max()
        error = (solver.acceleration(rho[None])[0] - force).abs().max() / force.abs().max()
        return float(phi_error), float(error)

    (phi_coarse, coarse), (phi_fine, fine) = errors(16), errors(32)
    assert phi_fine < 0.01
    assert fine < 0.06
    assert phi_coarse / phi_fine > 3.2
    assert coarse / fine > 3.2


def test_potential_is_the_direct_sum():
    """Of all cells, each as a point, and itself as a cube; also beside the box."""
    n = 4
    rho = torch.rand(1, n, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phi = solver_of(n, gravity=1.0).potential(rho)[0]
    places = torch.cartesian_prod(*(torch.arange(-1.0, n + 1),) * 3)
    cells = torch.cartesian_prod(*(torch.arange(0.0, n),) * 3)
    inverse = 1 / torch.cdist(places.double(), cells.double())
    inverse[inverse.isinf()] = CUBE_POTENTIAL
    expected = -(inverse @ rho.reshape(-1)) / n**2
    assert torch.allclose(phi.reshape(-1), expected, rtol=1e-12)


def test_cube_potential_is_the_mean_of_the_inverse_distance():
    middle = (torch.arange(100, dtype=torch.float64) + 0.5) / 100 - 0.5
    x, y, z = torch.meshgrid(middle, middle, middle, indexing="ij")
    mean = (x**2 + y**2 + z**2).rsqrt().mean()
    assert float(mean) == pytest.approx(CUBE_POTENTIAL, rel=1e-4)


def test_a_uniform_state_stays():
    """Without gravity, and in thermal equilibrium with radiation, exactly or to rounding."""
    W = torch.tensor([0.3, 0.2, -0.1, 0.4, 0.05], dtype=torch.float64)[:, None, None, None]
    U = conserved(W.repeat(1, 1, 8, 8, 8).reshape(1, 5, 8, 8, 8), GAMMA)
    assert torch.equal(solver_of(8).advance(U, GAMMA, 0.1), U)

    T = COOLING.equilibrium(W[0] * COOLING.hydrogen)
    W[4] = W[0] * COOLING.gas_constant * T
    U = conserved(W.repeat(1, 1, 8, 8, 8).reshape(1, 5, 8, 8, 8), GAMMA)
    later = solver_of(8, cooling=COOLING).advance(U, GAMMA, 0.1)
    assert torch.allclose(later, U, rtol=1e-3)
    assert torch.equal(later[:, :4], U[:, :4])


def test_mass_and_momentum_are_conserved():
    """Forces between cells are opposite: in a closed box, momentum stays to rounding."""
    solver, U = cloud(12, COOLING)
    later = solver.advance(U, GAMMA, 0.1)
    before, after = (V[0, :4].sum(dim=(1, 2, 3)) for V in (U, later))
    assert not torch.allclose(later, U, rtol=1e-2)
    assert float(abs(after[0] / before[0] - 1)) < 1e-13
    assert float((after[1:] - before[1:]).abs().max() / U[0, 1:4].abs().sum()) < 1e-13


def test_mass_leaves_only_through_the_sides():
    """In an open box, mass changes by the flow through its faces: thin, resting gas loses none."""
    U = ball(12)
    later = solver_of(12, gravity=1.0).advance(U, GAMMA, 0.05)
    assert float(later[0, 0].sum() / U[0, 0].sum()) == pytest.approx(1, abs=2e-3)


def test_collapse_conserves_energy():
    """Kinetic, internal and gravitational energy together, better on a finer grid."""

    def drift(cells: int) -> tuple[float, float]:
        solver = solver_of(cells, periodic=True, gravity=1.0)
        energies = []
        for U in solver.evolve(ball(cells), GAMMA, (0, 0.4)):
            phi = solver.potential(U[:, 0])[:, 1:-1, 1:-1, 1:-1]
            binding = (U[:, 0] * phi).sum() / 2
            energies.append((float(U[0, 4].sum() + binding), float(binding)))
        (total, binding), (later, later_binding) = energies
        return abs(later - total) / abs(binding), later_binding / binding

    (coarse, _), (fine, deeper) = drift(12), drift(24)
    assert deeper > 1.03  # it did collapse
    assert fine < 0.02
    assert coarse / fine > 2


def test_free_fall_starts_with_the_acceleration():
    """Cold gas at rest: after a short time, v = g t."""
    U = ball(16)
    solver = solver_of(16, periodic=True, gravity=1.0)
    U[:, 4] *= 1e-6
    later = solver.advance(U, GAMMA, 1e-3)
    v, g = later[:, 1:4] / later[:, :1], solver.acceleration(U[:, 0])
    assert torch.allclose(v, 1e-3 * g, atol=1e-3 * 0.01 * float(g.abs().max()))


def test_cooling_follows_its_differential_equation():
    rho = torch.tensor([0.1, 0.33, 1.0, 3.0], dtype=torch.float64)
    T = torch.tensor([3000.0, 500.0, 10.0, 300.0], dtype=torch.float64)
    time = 0.05 / COOLING.heating * T.mean()

    def relax(steps: int) -> Tensor:
        now = T
        for _ in range(steps):
            now = COOLING.relax(rho, now, time / steps)
        return now

    exact = T
    for _ in range(20_000):
        n = rho * COOLING.hydrogen
        exact = exact + time / 20_000 * COOLING.heating * (1 - n * cooling_function(exact))
    errors = [float((relax(steps) / exact - 1).abs().max()) for steps in (20, 80)]
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3


def test_cooling_reaches_equilibrium_from_both_sides_without_overshoot():
    rho = torch.logspace(-4, 3, 50, dtype=torch.float64)
    goal = COOLING.equilibrium(rho * COOLING.hydrogen)
    balance = rho * COOLING.hydrogen * cooling_function(goal)
    inside = (goal > 3.1) & (goal < 9e4)
    assert torch.allclose(
        balance[inside], torch.ones(int(inside.sum()), dtype=rho.dtype), rtol=0.02
    )
    for start, sign in ((2 * goal, 1), (0.5 * goal, -1)):
        last = start
        for dt in (1e-6, 1e-4, 1e-2, 1.0, 1e3):
            T = COOLING.relax(rho, start, torch.tensor(dt))
            assert (sign * (T - goal) >= -1e-9 * goal).all()
            assert (sign * (last - T) >= -1e-9 * goal).all()
            last = T
        assert torch.allclose(last[inside], goal[inside], rtol=1e-3)


def test_gas_is_never_colder_than_the_background():
    """Without metals too, where it neither heats nor cools otherwise."""
    rho, T, dt = torch.tensor([0.3, 0.3]), torch.tensor([0.5, 50.0]), torch.tensor(0.1)
    adiabatic = CloudUnits(44.5).cooling(0.0, 5 / 3)
    assert adiabatic.heating == 0
    assert adiabatic.relax(rho, T, dt).tolist() == [3, 50]
    assert COOLING.relax(rho, T, dt).min() > 3


def test_cooling_changes_temperature_alone():
    solver, U = cloud(8, COOLING)
    later = solver._cool(U, GAMMA, torch.tensor([0.01], dtype=torch.float64))
    assert torch.equal(later[:, :4], U[:, :4])
    assert (primitive(later, GAMMA)[:, 4] < primitive(U, GAMMA)[:, 4]).any()


def test_units_are_those_of_the_well():
    """Lengths and free-fall times as the dataset's description has them."""
    for rho0, length, time in ((44.5, 60, 6.93), (4.45, 129, 21.9), (0.445, 278, 69.3)):
        units = CloudUnits(rho0)
        assert units.length == pytest.approx(length, rel=5e-3)
        assert units.length / units.velocity * 0.977792 == pytest.approx(time, rel=5e-3)
        assert units.density == pytest.approx(CloudUnits(44.5).density)
    assert COOLING.hydrogen * CloudUnits(44.5).density == pytest.approx(44.5)
    # Γ / (3/2 k) per particle: 2e-26 erg/s per 1.4 m_H of gas with 0.6 m_H a particle.
    kelvin_per_second = 2e-26 * 0.6 / 1.4 / (1.5 * 1.380649e-16)
    expected = kelvin_per_second * 6.93e6 * 3.15576e7
    assert COOLING.heating == pytest.approx(expected, rel=5e-3)


def test_turbulence_has_no_divergence_and_its_spectrum():
    coarse, fine = (turbulent_velocity(np.random.default_rng(3), cells) for cells in (8, 24))
    np.testing.assert_allclose(fine[:, 1::3, 1::3, 1::3], coarse, atol=1e-12)
    assert fine.std() == pytest.approx(0.5, rel=0.25)
    waves = np.fft.fftn(fine, axes=(1, 2, 3))
    k = np.stack(np.meshgrid(*(24 * np.fft.fftfreq(24),) * 3, indexing="ij"))
    assert np.abs((k * waves).sum(axis=0)).max() < 1e-9 * np.abs(waves).max()
    length = np.sqrt(np.square(k).sum(axis=0))
    power = [
        np.square(np.abs(waves))[:, (length > low) & (length < low + 1)].sum() for low in (0.5, 1.5)
    ]
    assert 1.5 < power[0] / power[1] < 12  # about (1 / 2)⁻² = 4, of few random waves


def test_grids_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="three equal numbers"):
        GravityCoolingSolver((0.1, 0.1), (True, True))
    with pytest.raises(ValueError, match="three equal numbers"):
        GravityCoolingSolver((0.1, 0.1, 0.2), (True,) * 3)
