"""Scores of an ensemble forecast.

`u` is the truth, with shape (…, *S), `v` the ensemble, with shape (M, …, *S), v_m its M members and
v̄ their mean. ⟨·⟩ is the mean over *S, see `spatial_mean`. Scores have the field's unit unless said
otherwise, shape (…) and type float64.

To average spread and skill over cases (trajectories, start times), average their squares and take
the root: the ratio of averages is calibrated, the average of ratios is not.

References:
    | Why should ensemble spread match the RMSE of the ensemble mean? (Fortin et al., 2014)
    | https://doi.org/10.1175/JHM-D-14-0008.1

    | Fair scores for ensemble forecasts (Ferro, 2014)
    | https://doi.org/10.1002/qj.2270

    | Estimation of the CRPS with limited information (Zamo and Naveau, 2018)
    | https://doi.org/10.1007/s11004-017-9709-7

    | Assessing probabilistic forecasts of multivariate quantities (Gneiting et al., 2008)
    | https://doi.org/10.1007/s11749-008-0114-x

    | Interpretation of rank histograms for verifying ensemble forecasts (Hamill, 2001)
    | https://doi.org/10.1175/1520-0493(2001)129%3C0550:IORHFV%3E2.0.CO;2
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
    """M, at least 2."""
    if v.shape[0] < 2:
        raise ValueError(f"an ensemble score needs at least 2 members, got {v.shape[0]}")
    return v.shape[0]


def spread(v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the root of the mean unbiased variance, √⟨1/(M-1) Σ_m (v_m - v̄)²⟩.

    Arguments:
        v: The ensemble, with shape (M, …, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.

    Raises:
        ValueError: There are fewer than 2 members.
    """
    _members(v)
    return spatial_mean(v.var(dim=0, correction=1), spatial, volumes).sqrt()


def skill(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the root mean squared error of the ensemble mean, √⟨(u - v̄)²⟩.

    Arguments:
        u: The truth, with shape (…, *S).
        v: The ensemble, with shape (M, …, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    return rmse(u, v.mean(dim=0), spatial, volumes)


def finite_ensemble_factor(members: int) -> float:
    """Returns √((M + 1)/M), by which spread is multiplied to match skill when M is finite.

    If the truth and the M members are exchangeable with variance s², the mean squared error of v̄
    is s² + s²/M while the unbiased variance is s² (Fortin et al., 2014, eq. 15).
    """
    return math.sqrt((members + 1) / members)


def spread_skill_ratio(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the corrected ratio √((M + 1)/M) · spread / skill, without unit.

    It is 1 if truth and members are exchangeable, less if the ensemble is overconfident, and NaN if
    spread and skill are 0.

    Arguments:
        u: The truth, with shape (…, *S).
        v: The ensemble, with shape (M, …, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.

    Raises:
        ValueError: There are fewer than 2 members.
    """
    factor = finite_ensemble_factor(_members(v))
    return factor * spread(v, spatial, volumes) / skill(u, v, spatial, volumes)


def fair_crps(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the fair continuous ranked probability score, averaged over *S.

    ⟨1/M Σ_m |v_m - u| - 1/(2 M (M - 1)) Σ_m Σ_n |v_m - v_n|⟩ (Ferro, 2014; Zamo and Naveau, 2018)
    has an expectation that does not depend on M and is least if members and truth share their
    distribution. The score of one cell can be negative.

    Arguments:
        u: The truth, with shape (…, *S).
        v: The ensemble, with shape (M, …, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.

    Raises:
        ValueError: There are fewer than 2 members.
    """
    M = _members(v)
    pairs = torch.zeros_like(v[0])
    for m in range(1, M):  # quicker than to sort a few members, and exact far from zero
        pairs += (v[:m] - v[m]).abs_().sum(dim=0)
    return spatial_mean((v - u).abs_().mean(dim=0) - pairs / (M * (M - 1)), spatial, volumes)


def energy_score(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the fair energy score of whole fields.

    1/M Σ_m ‖v_m - u‖ - 1/(2 M (M - 1)) Σ_m Σ_n ‖v_m - v_n‖ with ‖x‖ = √⟨x²⟩ compares patterns,
    where the CRPS compares single cells.

    Arguments:
        u: The truth, with shape (…, *S).
        v: The ensemble, with shape (M, …, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.

    Raises:
        ValueError: There are fewer than 2 members.
    """
    M = _members(v)
    error = rmse(u, v, spatial, volumes).mean(dim=0)
    pairs = torch.zeros_like(error)
    for m in range(1, M):
        pairs += rmse(v[m], v[:m], spatial, volumes).sum(dim=0)
    return error - pairs / (M * (M - 1))


def rank_histogram(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    """Returns how often, over the cells, r = 0..M members lie below the truth.

    The histogram is flat, 1/(M + 1), if truth and members are exchangeable. A U means too little
    spread, a dome too much, a slope a bias. Cells where members equal the truth count for all ranks
    that these allow, in equal parts.

    Arguments:
        u: The truth, with shape (…, *S).
        v: The ensemble, with shape (M, …, *S).
        spatial: The number of spatial axes.

    Returns:
        The histogram, with shape (…, M + 1).
    """
    below, equal = (v < u).sum(dim=0), (v == u).sum(dim=0)
    share = 1 / (equal + 1).to(torch.float64)
    ranks = [
        spatial_mean(share * ((below <= r) & (r <= below + equal)), spatial)
        for r in range(len(v) + 1)
    ]
    return torch.stack(ranks, dim=-1)


def coverage(histogram: Tensor) -> Tensor:
    """Returns how often the truth lies within central intervals of the ensemble.

    Interval j = 1..J, J = ⌊M/2⌋, leaves out the j lowest and the j highest ranks; j = 1 is the
    range of all members.

    Arguments:
        histogram: The histogram of `rank_histogram`, with shape (…, M + 1).

    Returns:
        The frequencies, with shape (…, J).
    """
    M = histogram.shape[-1] - 1
    inside = [histogram[..., j : M + 1 - j].sum(dim=-1) for j in range(1, M // 2 + 1)]
    return torch.stack(inside, dim=-1)


def nominal_coverage(members: int) -> list[float]:
    """Returns (M + 1 - 2j)/(M + 1), j = 1..⌊M/2⌋, the coverage of a calibrated ensemble."""
    return [(members + 1 - 2 * j) / (members + 1) for j in range(1, members // 2 + 1)]
