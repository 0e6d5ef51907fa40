r"""Scores of an ensemble forecast.

Symbols: `u` the truth (…, *S); `v` the ensemble (M, …, *S), M members along the FIRST axis, v_m
one member, v̄ = 1/M Σ_m v_m; ⟨·⟩ the mean over the last `spatial` axes. The results have the
shape of `u` without its spatial axes and, unless said otherwise, the unit of the field.

To average over cases (trajectories, start times), average the squares of spread and skill and
take roots after: the ratio of averages is calibrated, the average of ratios is not.

References:
    Fortin et al., Why should ensemble spread match the RMSE of the ensemble mean?, Journal of
        Hydrometeorology 15, 2014 (the correction for a finite ensemble).
    Ferro, Fair scores for ensemble forecasts, Quarterly Journal of the Royal Meteorological
        Society 140, 2014.
    Zamo and Naveau, Estimation of the continuous ranked probability score with limited
        information, Mathematical Geosciences 50, 2018, eq. 3 (the sorted form).
    Rasp et al., WeatherBench 2, 2024 (arXiv:2308.15560), section on metrics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import rmse, spatial_mean

__all__ = ["fair_crps", "finite_ensemble_factor", "skill", "spread", "spread_skill_ratio"]


def _members(v: Tensor) -> int:
    """M, refused when there are too few members for a variance."""
    if v.shape[0] < 2:
        raise ValueError(f"an ensemble score needs at least 2 members, got {v.shape[0]}")
    return v.shape[0]


def spread(v: Tensor, spatial: int) -> Tensor:
    r"""Root of the mean unbiased ensemble variance, √⟨1/(M-1) Σ_m (v_m - v̄)²⟩, float64.

    Raises:
        ValueError: with fewer than 2 members.
    """
    _members(v)
    return spatial_mean(v.var(dim=0, correction=1), spatial).sqrt()


def skill(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""Root mean squared error of the ensemble's mean, √⟨(u - v̄)²⟩, float64."""
    return rmse(u, v.mean(dim=0), spatial)


def finite_ensemble_factor(members: int) -> float:
    r"""√((M + 1)/M): what spread must be multiplied by to match skill when M is finite.

    If the truth and the M members are exchangeable with variance s², the mean squared error of v̄
    is s² + s²/M while the unbiased ensemble variance is s² (Fortin et al., 2014, eq. 15).
    """
    return math.sqrt((members + 1) / members)


def spread_skill_ratio(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""Corrected ratio √((M + 1)/M) · spread / skill; no unit, float64.

    1 when truth and members are exchangeable; below 1 the ensemble is too sure of itself.
    A perfect ensemble without spread gives NaN (0/0).

    Raises:
        ValueError: with fewer than 2 members.
    """
    return finite_ensemble_factor(_members(v)) * spread(v, spatial) / skill(u, v, spatial)


def fair_crps(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""Fair continuous ranked probability score, averaged over S, float64.

    ⟨1/M Σ_m |v_m - u| - 1/(2 M (M - 1)) Σ_m Σ_n |v_m - v_n|⟩ (Ferro, 2014): its expectation does
    not depend on M and is least when members and truth share their distribution. The double sum
    over M² pairs is Σ_m 2 (2m - M - 1) v_(m) over the sorted members, m = 1..M. One cell's score
    can be negative, its expectation cannot.

    Raises:
        ValueError: with fewer than 2 members (use the mean absolute error instead).
    """
    M = _members(v)
    rank = torch.arange(1, M + 1, dtype=v.dtype, device=v.device).reshape(-1, *[1] * (v.ndim - 1))
    pairs = ((2 * rank - M - 1) * v.sort(dim=0).values).sum(dim=0) / (M * (M - 1))
    return spatial_mean((v - u).abs().mean(dim=0) - pairs, spatial)
