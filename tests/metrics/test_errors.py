"""Pointwise errors against float64 restatements and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.metrics import correlation, nrmse, rmse, spatial_mean, total_error, vrmse, worst_error


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


@given(spatial=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_other_errors_match_numpy(spatial: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 6, size=spatial)
    volumes = rng.uniform(0.2, 2, shape)
    volumes /= volumes.mean()
    u, v = rng.normal(1, 2, shape), rng.normal(0, 1, shape)
    tu, tv, tw = (torch.from_numpy(x) for x in (u, v, volumes))
    assert float(worst_error(tu, tv, spatial)) == np.abs(u - v).max()
    covariance = np.cov(u.ravel(), v.ravel(), aweights=volumes.ravel())
    rho = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert float(correlation(tu, tv, spatial, tw)) == pytest.approx(rho, rel=1e-9)
    totals = abs((v * volumes).sum() - (u * volumes).sum()) / volumes.sum()
    scale = math.sqrt((u**2 * volumes).mean() + 1e-6)
    assert float(total_error(tu, tv, spatial, tw)) == pytest.approx(totals / scale, rel=1e-9)
    error = math.sqrt(((u - v) ** 2 * volumes).mean())
    assert float(rmse(tu, tv, spatial, tw)) == pytest.approx(error, rel=1e-9)
    variance = np.average((u - np.average(u, weights=volumes)) ** 2, weights=volumes)
    expected = error / math.sqrt(variance + 1e-6)
    assert float(vrmse(tu, tv, spatial, tw)) == pytest.approx(expected, rel=1e-9)
    expected = error / math.sqrt((u**2 * volumes).mean() + 1e-6)
    assert float(nrmse(tu, tv, spatial, tw)) == pytest.approx(expected, rel=1e-9)


def test_correlation_is_of_patterns() -> None:
    x = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    u = 5 + torch.cos(3 * x)
    for shift, expected in ((0.0, 1.0), (math.pi, -1.0), (math.pi / 2, 0.0), (1.0, math.cos(1.0))):
        v = 40 * torch.cos(3 * x - shift) - 2
        assert float(correlation(u, v, 1)) == pytest.approx(expected, abs=1e-12)
    assert float(correlation(u, torch.ones(64), 1)) == 0
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    assert abs(float(correlation(a, b, 2))) < 0.02


def test_totals_of_fields_of_zero_mean_do_not_explode() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(64, 64, generator=generator)
    u -= u.mean()
    assert float(total_error(u, u, 2)) == 0
    assert float(total_error(u, u + 0.1, 2)) == pytest.approx(0.1, rel=0.05)
    assert float(total_error(u, u.roll(3, 0), 2)) < 1e-6
