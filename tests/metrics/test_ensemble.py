"""Ensemble scores against naive sums over pairs and calibrated Gaussian ensembles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.metrics import (
    coverage,
    energy_score,
    fair_crps,
    finite_ensemble_factor,
    nominal_coverage,
    rank_histogram,
    rmse,
    skill,
    spread,
    spread_skill_ratio,
)


def naive(u: np.ndarray, v: np.ndarray) -> tuple[float, float, float]:
    """Spread, skill and fair CRPS of one field, cell by cell and pair by pair."""
    M = len(v)
    variance, error, crps = 0.0, 0.0, 0.0
    for cell in np.ndindex(*u.shape):
        x = v[(slice(None), *cell)]
        mean = sum(x) / M
        variance += sum((a - mean) ** 2 for a in x) / (M - 1)
        error += (u[cell] - mean) ** 2
        pairs = sum(abs(a - b) for a, b in itertools.product(x, x))
        crps += sum(abs(a - u[cell]) for a in x) / M - pairs / (2 * M * (M - 1))
    return (variance / u.size) ** 0.5, (error / u.size) ** 0.5, crps / u.size


@given(members=st.integers(2, 7), spatial=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_scores_match_naive_sums(members: int, spatial: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, *rng.integers(1, 5, size=spatial))
    u, v = rng.normal(size=shape), rng.normal(size=(members, *shape))
    tu, tv = torch.tensor(u), torch.tensor(v)
    results = spread(tv, spatial), skill(tu, tv, spatial), fair_crps(tu, tv, spatial)
    ratio = spread_skill_ratio(tu, tv, spatial)
    for i in range(2):
        s, k, c = naive(u[i], v[:, i])
        assert [float(r[i]) for r in results] == pytest.approx((s, k, c), rel=1e-9, abs=1e-12)
        assert float(ratio[i]) == pytest.approx(math.sqrt((members + 1) / members) * s / k)


@pytest.mark.parametrize("members", [2, 3, 8, 32])
def test_a_calibrated_ensemble_has_ratio_one(members: int) -> None:
    generator = torch.Generator().manual_seed(members)
    centre = torch.randn(400, 400, generator=generator)
    u = centre + 0.7 * torch.randn(400, 400, generator=generator)
    v = centre + 0.7 * torch.randn(members, 400, 400, generator=generator)
    assert float(spread_skill_ratio(u, v, 2)) == pytest.approx(1, abs=0.01)
    assert float(spread(v, 2)) == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize("members", [2, 5, 20])
def test_fair_crps_of_a_calibrated_gaussian_does_not_depend_on_the_members(members: int) -> None:
    """E CRPS(N(0, s²), y ~ N(0, s²)) = s/√π."""
    generator = torch.Generator().manual_seed(members)
    u = 2 * torch.randn(500, 500, generator=generator)
    v = 2 * torch.randn(members, 500, 500, generator=generator)
    assert float(fair_crps(u, v, 2)) == pytest.approx(2 / math.sqrt(math.pi), rel=0.01)


def test_fair_crps_prefers_the_true_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(300, 300, generator=generator)
    v = torch.randn(8, 300, 300, generator=generator)
    best = float(fair_crps(u, v, 2))
    assert best < float(fair_crps(u, 0.6 * v, 2))
    assert best < float(fair_crps(u, 1.5 * v, 2))


def test_identical_members_reduce_to_deterministic_scores() -> None:
    u, x = torch.randn(2, 3, 8, 8)
    v = x.expand(4, 3, 8, 8)
    assert float(spread(v, 2).max()) == 0
    assert torch.allclose(skill(u, v, 2), rmse(u, x, 2))
    mae = (u - x).abs().mean(dim=(-2, -1)).double()
    assert torch.allclose(fair_crps(u, v, 2), mae, rtol=1e-5)


def test_a_single_member_is_refused() -> None:
    u, v = torch.zeros(4, 4), torch.zeros(1, 4, 4)
    for score in (spread_skill_ratio, fair_crps):
        with pytest.raises(ValueError, match="at least 2 members"):
            score(u, v, 2)
    with pytest.raises(ValueError, match="at least 2 members"):
        spread(v, 2)


def test_the_correction_tends_to_one() -> None:
    assert finite_ensemble_factor(1) == pytest.approx(math.sqrt(2))
    assert finite_ensemble_factor(10**6) == pytest.approx(1, abs=1e-6)


@given(members=st.integers(2, 7), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_scores_match_scoringrules(members: int, seed: int) -> None:
    """`scoringrules` has a fair energy score with the Euclidean norm; ours divides by √cells."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(3, 4, 5)), rng.normal(size=(members, 3, 4, 5))
    tu, tv = torch.tensor(u), torch.tensor(v)
    crps = scoringrules.crps_ensemble(u, v, m_axis=0, estimator="fair").mean(axis=(1, 2))
    assert fair_crps(tu, tv, 2).numpy() == pytest.approx(crps, rel=1e-9)
    flat = v.reshape(members, 3, 20)
    es = scoringrules.es_ensemble(u.reshape(3, 20), flat, m_axis=0, v_axis=-1, estimator="fair")
    assert energy_score(tu, tv, 2).numpy() == pytest.approx(es / math.sqrt(20), rel=1e-9)


def test_the_energy_score_sees_structure_that_the_crps_does_not() -> None:
    """Fields constant in space, against members with the same values shuffled over cells."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(17, 200, 1, 1, generator=generator)
    fields = levels.expand(17, 200, 8, 8)
    noise = torch.randn(16, 200, 8, 8, generator=generator)
    u, v = fields[0], fields[1:]
    assert float(fair_crps(u, noise, 2).mean()) == pytest.approx(
        float(fair_crps(u, v, 2).mean()), rel=0.1
    )
    assert float(energy_score(u, v, 2).mean()) < 0.9 * float(energy_score(u, noise, 2).mean())


@given(members=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_ranks_match_a_count_cell_by_cell(members: int, seed: int) -> None:
    """Small integers have many ties."""
    rng = np.random.default_rng(seed)
    u, v = rng.integers(0, 3, (5, 4)), rng.integers(0, 3, (members, 5, 4))
    expected = np.zeros(members + 1)
    for cell in np.ndindex(5, 4):
        x = v[(slice(None), *cell)]
        below, equal = (x < u[cell]).sum(), (x == u[cell]).sum()
        expected[below : below + equal + 1] += 1 / (equal + 1)
    found = rank_histogram(torch.tensor(u), torch.tensor(v), 2)
    assert found.numpy() == pytest.approx(expected / 20)
    assert float(found.sum()) == pytest.approx(1)


def test_the_histogram_of_a_calibrated_ensemble_is_flat() -> None:
    x = torch.randn(9, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    flat = rank_histogram(x[0], x[1:], 2)
    assert flat.numpy() == pytest.approx(1 / 9, abs=3e-3)
    found = coverage(flat)
    assert found.shape == (3, 4)
    expected = nominal_coverage(8)
    assert expected == pytest.approx([7 / 9, 5 / 9, 3 / 9, 1 / 9])
    assert found.numpy() == pytest.approx(np.tile(expected, (3, 1)), abs=5e-3)
    sure = rank_histogram(x[0], 0.3 * x[1:], 2)[0]
    assert float(sure[0]) > 2 / 9  # a U
    assert float(sure[4]) < 1 / 9
    assert float(coverage(sure)[0]) < 0.6


def test_volumes_weigh_every_score() -> None:
    """Weights 2 and 0 on halves: the scores of the first half alone."""
    u, v = torch.randn(3, 8, 4), torch.randn(5, 3, 8, 4)
    volumes = torch.cat([torch.full((4, 4), 2.0), torch.zeros(4, 4)]).double()
    for score in (skill, fair_crps, energy_score, spread_skill_ratio):
        found, expected = score(u, v, 2, volumes), score(u[:, :4], v[:, :, :4], 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
