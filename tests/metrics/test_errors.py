"""Pointwise errors against float64 restatements and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.metrics import nrmse, rmse, spatial_mean, vrmse


def naive(u: np.ndarray, v: np.ndarray, eps: float = 1e-6) -> tuple[float, float, float]:
    """RMSE, NRMSE and VRMSE of one field, cell by cell."""
    n = u.size
    error = sum((a - b) ** 2 for a, b in zip(u.flat, v.flat)) / n
    mean = sum(u.flat) / n
    variance = sum((a - mean) ** 2 for a in u.flat) / n
    power = sum(a**2 for a in u.flat) / n
    return error**0.5, (error / (power + eps)) ** 0.5, (error / (variance + eps)) ** 0.5


@given(
    spatial=st.integers(1, 3),
    lead=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 2**16),
    offset=st.floats(-10, 10),
)
@settings(max_examples=30, deadline=None)
def test_errors_match_a_cell_by_cell_sum(
    spatial: int, lead: list[int], seed: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (*lead, *rng.integers(2, 6, size=spatial))
    u, v = rng.normal(offset, 2.0, shape), rng.normal(offset, 1.0, shape)
    results = [f(torch.tensor(u), torch.tensor(v), spatial) for f in (rmse, nrmse, vrmse)]
    assert all(r.shape == tuple(lead) for r in results)
    for index in np.ndindex(*lead):
        expected = naive(u[index], v[index])
        assert [float(r[index]) for r in results] == pytest.approx(expected, rel=1e-10)


def test_a_perfect_forecast_has_no_error() -> None:
    u = torch.randn(3, 8, 8)
    for metric in (rmse, nrmse, vrmse):
        assert torch.equal(metric(u, u, 2), torch.zeros(3, dtype=torch.float64))


def test_predicting_the_mean_or_zero_gives_one() -> None:
    u = 3 + torch.randn(64, 64)
    assert float(vrmse(u, u.mean().expand_as(u), 2)) == pytest.approx(1, abs=1e-5)
    assert float(nrmse(u, torch.zeros_like(u), 2)) == pytest.approx(1, abs=1e-5)


def test_independent_fields_have_vrmse_sqrt_2() -> None:
    u, v = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    assert float(vrmse(u, v, 2)) == pytest.approx(math.sqrt(2), rel=1e-2)


def test_a_shifted_cosine_has_its_analytic_error() -> None:
    x = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    u, v = torch.cos(3 * x), torch.cos(3 * x - math.pi / 3)
    assert float(vrmse(u, v, 1, eps=0.0)) == pytest.approx(2 * math.sin(math.pi / 6), rel=1e-12)


def test_a_constant_field_stays_finite() -> None:
    u = torch.full((4, 4), 2.0)
    assert float(vrmse(u, u, 2)) == 0
    assert math.isfinite(float(vrmse(u, u + 1, 2)))


def test_float32_fields_far_from_zero_keep_their_accuracy() -> None:
    u = (1000 + torch.randn(256, 256, generator=torch.Generator().manual_seed(1))).float()
    v = (u + 0.1 * torch.randn(256, 256, generator=torch.Generator().manual_seed(2))).float()
    exact = vrmse(u.double(), v.double(), 2)
    assert float(vrmse(u, v, 2)) == pytest.approx(float(exact), rel=1e-6)


def test_the_members_axis_broadcasts() -> None:
    u, v = torch.randn(5, 8, 8), torch.randn(3, 5, 8, 8)
    assert torch.equal(vrmse(u, v, 2)[1], vrmse(u, v[1], 2))


@pytest.mark.parametrize("spatial", [0, 3])
def test_axes_that_do_not_exist_are_refused(spatial: int) -> None:
    with pytest.raises(ValueError, match=f"spatial={spatial}"):
        spatial_mean(torch.zeros(4, 4), spatial)
