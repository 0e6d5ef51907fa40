"""Grids with cells of different sizes: volumes that tile, interpolation that converges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lola_ds.metrics import Grid, power_spectrum, rmse, spatial_mean
from lola_ds.metrics.grid import faces


def chebyshev(n: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Gauss–Chebyshev nodes as Dedalus makes them, rounded to float32 as files hold them."""
    nodes = -np.cos(np.pi * (np.arange(n) + 0.5) / n)
    return (low + (high - low) * (nodes + 1) / 2).astype(np.float32)


@pytest.mark.parametrize("n", [8, 128])
def test_cells_around_chebyshev_nodes_tile_the_domain(n: int) -> None:
    bounds = faces(chebyshev(n, -1.0, 3.0).astype(np.float64))
    assert bounds[[0, -1]] == pytest.approx([-1, 3], abs=1e-5)
    assert bounds == pytest.approx(1 - 2 * np.cos(np.pi * np.arange(n + 1) / n), abs=1e-4)


def test_other_cells_end_half_way() -> None:
    assert faces(np.array([0.0, 1.0, 4.0])).tolist() == [-0.5, 0.5, 2.5, 5.5]


def test_a_mean_weighs_cells_by_their_volume() -> None:
    y = chebyshev(64)
    grid = Grid((16, 64), [None, y])
    assert not grid.uniform
    assert float(grid.volumes.mean()) == pytest.approx(1)
    u = torch.from_numpy(y).double().square().expand(3, 16, 64)
    mean = spatial_mean(u, 2, grid.volumes)
    assert mean.numpy() == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert float(spatial_mean(u, 2)[0]) == pytest.approx(3 / 8, abs=1e-3)  # the wrong one
    zero = torch.zeros_like(u)
    assert float(rmse(u, zero, 2, grid.volumes)[0]) == pytest.approx(math.sqrt(1 / 5), abs=1e-3)


def test_interpolation_is_exact_for_cubics_and_finds_the_wave_number() -> None:
    y = chebyshev(64)
    grid = Grid((64, 8), [y, None])
    even = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    exact = torch.from_numpy(y).double()[:, None].expand(64, 8) ** 3
    torch.testing.assert_close(
        grid.to_uniform(exact), even[:, None].expand(64, 8) ** 3, rtol=1e-4, atol=1e-6
    )
    wave = torch.from_numpy(np.cos(2 * np.pi * 5 * y.astype(np.float64)))[None, :, None]
    power = power_spectrum(grid.to_uniform(wave.expand(2, 64, 8)), 2)
    assert power.argmax(dim=1).tolist() == [5, 5]
    assert float(power[0, 5]) == pytest.approx(0.5, rel=1e-2)
    without = power_spectrum(wave.expand(2, 64, 8), 2)
    assert float(without[0, 5]) < 0.3  # the transform of the nodes smears it


def test_even_axes_are_left_alone() -> None:
    grid = Grid((8, 6), [np.linspace(0, 1, 8, dtype=np.float32), None])
    assert grid.uniform
    assert grid.volumes is None
    u = torch.randn(8, 6)
    assert grid.to_uniform(u) is u
    assert Grid((2,), [[0.0, 5.0]]).uniform


def test_bad_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="axis 0: expected 3 increasing"):
        Grid((3, 3), [[0.0, 2.0, 1.0], None])
    with pytest.raises(ValueError, match="axis 0: expected 4 increasing"):
        Grid((4,), [[0.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="1 axes of coordinates"):
        Grid((3, 3), [[0.0, 1.0, 2.0]])
