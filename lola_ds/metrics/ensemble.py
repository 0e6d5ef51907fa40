r"""Scores of an ensemble forecast.

Symbols: `u` the truth (…, *S); `v` the ensemble (M, …, *S), M members along the FIRST axis, v_m
one member, v̄ = 1/M Σ_m v_m; ⟨·⟩ the mean over the last `spatial` axes, weighted by `volumes`
where given (see `Grid.volumes`). The results have the shape of `u` without its spatial axes and,
unless said otherwise, the unit of the field.

To average over cases (trajectories, start times), average the squares of spread and skill and
take roots after: the ratio of averages is calibrated, the average of ratios is not.

References:
    Fortin et al., Why should ensemble spread match the RMSE of the ensemble mean?, Journal of
        Hydrometeorology 15, 2014 (the correction for a finite ensemble).
    Ferro, Fair scores for ensemble forecasts, Quarterly Journal of the Royal Meteorological
        Society 140, 2014.
    Zamo and Naveau, Estimation of the continuous ranked probability score with limited
        information, Mathematical Geosciences 50, 2018.
    Gneiting et al., Assessing probabilistic forecasts of multivariate quantities, Test 17, 2008
        (the energy score, rank histograms).
    Hamill, Interpretation of rank histograms for verifying ensemble forecasts, Monthly Weather
        Review 129, 2001.
    Rasp et al., WeatherBench 2, 2024 (arXiv:2308.15560), section on metrics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lola_ds.metrics.errors import rmse, spatial_mean

__all__ = [
    "coverage",
    "energy_score",
    "fair_crps",
    "finite_ensemble_factor",
    "nominal_coverage",
    "rank_histogram",
    "skill",
    "spread",
    "spread_skill_ratio",
]


def _members(v: Tensor) -> int:
    """M, refused when there are too few members for a variance."""
    if v.shape[0] < 2:
        raise ValueError(f"an ensemble score needs at least 2 members, got {v.shape[0]}")
    return v.shape[0]


def spread(v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Root of the mean unbiased ensemble variance, √⟨1/(M-1) Σ_m (v_m - v̄)²⟩, float64.

    Raises:
        ValueError: with fewer than 2 members.
    """
    _members(v)
    return spatial_mean(v.var(dim=0, correction=1), spatial, volumes).sqrt()


def skill(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Root mean squared error of the ensemble's mean, √⟨(u - v̄)²⟩, float64."""
    return rmse(u, v.mean(dim=0), spatial, volumes)


def finite_ensemble_factor(members: int) -> float:
    r"""√((M + 1)/M): what spread must be multiplied by to match skill when M is finite.

    If the truth and the M members are exchangeable with variance s², the mean squared error of v̄
    is s² + s²/M while the unbiased ensemble variance is s² (Fortin et al., 2014, eq. 15).
    """
    return math.sqrt((members + 1) / members)


def spread_skill_ratio(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Corrected ratio √((M + 1)/M) · spread / skill; no unit, float64.

    1 when truth and members are exchangeable; below 1 the ensemble is too sure of itself.
    A perfect ensemble without spread gives NaN (0/0).

    Raises:
        ValueError: with fewer than 2 members.
    """
    factor = finite_ensemble_factor(_members(v))
    return factor * spread(v, spatial, volumes) / skill(u, v, spatial, volumes)


def fair_crps(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Fair continuous ranked probability score, averaged over S, float64.

    ⟨1/M Σ_m |v_m - u| - 1/(2 M (M - 1)) Σ_m Σ_n |v_m - v_n|⟩ (Ferro, 2014; Zamo and Naveau, 2018):
    its expectation does not depend on M and is least when members and truth share their
    distribution. One cell's score can be negative, its expectation cannot.

    Raises:
        ValueError: with fewer than 2 members (use the mean absolute error instead).
    """
    M = _members(v)
    pairs = torch.zeros_like(v[0])
    for m in range(1, M):  # quicker than to sort a few members, and exact far from zero
        pairs += (v[:m] - v[m]).abs_().sum(dim=0)
    return spatial_mean((v - u).abs_().mean(dim=0) - pairs / (M * (M - 1)), spatial, volumes)


def energy_score(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Fair energy score of a whole field, float64.

    1/M Σ_m ‖v_m - u‖ - 1/(2 M (M - 1)) Σ_m Σ_n ‖v_m - v_n‖ with ‖x‖ = √⟨x²⟩, which does not grow
    with the number of cells. Where the CRPS looks at one cell at a time, this sees the members as
    patterns: an ensemble with the right distribution in every cell and no structure scores badly.

    Raises:
        ValueError: with fewer than 2 members.
    """
    M = _members(v)
    error = rmse(u, v, spatial, volumes).mean(dim=0)
    pairs = torch.zeros_like(error)
    for m in range(1, M):
        pairs += rmse(v[m], v[:m], spatial, volumes).sum(dim=0)
    return error - pairs / (M * (M - 1))


def rank_histogram(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""How often r = 0..M members lie below the truth: (…) -> (…, M + 1), float64; no unit.

    Relative frequencies over the cells. Flat, 1/(M + 1), when truth and members are exchangeable;
    a U means too little spread, a dome too much, a slope a bias. Cells where members equal the
    truth count evenly for all ranks they allow.
    """
    below, equal = (v < u).sum(dim=0), (v == u).sum(dim=0)
    share = 1 / (equal + 1).to(torch.float64)
    ranks = [
        spatial_mean(share * ((below <= r) & (r <= below + equal)), spatial)
        for r in range(len(v) + 1)
    ]
    return torch.stack(ranks, dim=-1)


def coverage(histogram: Tensor) -> Tensor:
    r"""How often the truth lies within central intervals of the ensemble: (…, M + 1) -> (…, J).

    Interval j = 1..J, J = ⌊M/2⌋, leaves out the j lowest and the j highest ranks of
    `rank_histogram`: j = 1 is the range of all members. Calibrated ensembles reach
    `nominal_coverage(M)`.
    """
    M = histogram.shape[-1] - 1
    inside = [histogram[..., j : M + 1 - j].sum(dim=-1) for j in range(1, M // 2 + 1)]
    return torch.stack(inside, dim=-1)


def nominal_coverage(members: int) -> list[float]:
    """(M + 1 - 2j)/(M + 1), j = 1..⌊M/2⌋: the coverage of a calibrated ensemble."""
    return [(members + 1 - 2 * j) / (members + 1) for j in range(1, members // 2 + 1)]
