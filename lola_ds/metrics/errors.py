r"""Pointwise errors between a true state and its forecast.

Symbols: `u` the truth and `v` the forecast, of one broadcastable shape (…, *S) whose last
`spatial` axes are the spatial axes S; ⟨·⟩ the mean over S. Each function reduces S and keeps the
leading axes (members, trajectories, fields, times): a field is never mixed with another. Means
weigh cells equally, or by the `volumes` (*S) of `Grid.volumes`, whose mean is 1.

Differences are taken in the inputs' precision and averaged in float64, so a result neither
depends on the number of cells that fit in float32 nor on the order of the sum.

References:
    Ohana et al., The Well, 2024 (arXiv:2412.00568), appendix on metrics.
    Rozet et al., Lost in Latent Space, 2025 (arXiv:2507.02608), section 4 and appendix.
    Rasp et al., WeatherBench 2, 2024 (arXiv:2308.15560), section on metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "correlation",
    "mae",
    "nrmse",
    "rmse",
    "spatial_mean",
    "total_error",
    "vrmse",
    "worst_error",
]

EPS = 1e-6  # keeps the ratio of a field that is (nearly) constant finite; unit: field squared


def spatial_mean(x: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """The mean over the last `spatial` axes, summed in float64: (…, *S) -> (…) float64.

    Raises:
        ValueError: if `x` has no `spatial` axes to reduce.
    """
    if not 1 <= spatial <= x.ndim:
        raise ValueError(f"spatial={spatial}: a state of shape {tuple(x.shape)} has no such axes")
    if volumes is not None:
        x = x * volumes.to(x.device)
    return x.mean(dim=tuple(range(-spatial, 0)), dtype=torch.float64)


def rmse(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Root mean squared error, √⟨(u - v)²⟩, in the field's unit: (…, *S) -> (…) float64."""
    return spatial_mean((u - v).square(), spatial, volumes).sqrt()


def mae(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Mean absolute error, ⟨|u - v|⟩, in the field's unit: (…, *S) -> (…) float64.

    The continuous ranked probability score of a forecast that is a single state, to compare those
    of ensembles with (WeatherBench 2).
    """
    return spatial_mean((u - v).abs(), spatial, volumes)


def nrmse(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    r"""RMSE relative to the truth's magnitude, √(⟨(u - v)²⟩ / (⟨u²⟩ + ε)); no unit.

    The Well's NRMSE (norm mode "norm"): predicting zero gives 1. A field with a large mean looks
    easy here; `vrmse` removes that.
    """
    error = spatial_mean((u - v).square(), spatial, volumes)
    return (error / (spatial_mean(u.square(), spatial, volumes) + eps)).sqrt()


def vrmse(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    r"""RMSE relative to the truth's standard deviation, √(⟨(u - v)²⟩ / (⟨(u - ⟨u⟩)²⟩ + ε)).

    No unit. Predicting the truth's spatial mean gives 1, and an independent field of the same
    statistics √2 (The Well's and Lost in Latent Space's headline metric). The variance is the
    biased one, 1/|S|, as in the latter.
    """
    variance = spatial_mean(_anomaly(u, spatial, volumes).square(), spatial, volumes)
    return (spatial_mean((u - v).square(), spatial, volumes) / (variance + eps)).sqrt()


def worst_error(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""The largest error of any cell, max |u - v| (L-infinity), in the field's unit, float64."""
    return (u - v).abs().amax(dim=tuple(range(-spatial, 0))).to(torch.float64)


def correlation(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Pearson's correlation over space, ⟨u' v'⟩ / √(⟨u'²⟩ ⟨v'²⟩) with u' = u - ⟨u⟩; no unit.

    1 for equal patterns, 0 for unrelated ones, -1 for opposite ones; a constant field gives 0.
    """
    u, v = _anomaly(u, spatial, volumes), _anomaly(v, spatial, volumes)
    norm = spatial_mean(u.square(), spatial, volumes) * spatial_mean(v.square(), spatial, volumes)
    tiny = torch.finfo(torch.float64).tiny
    return spatial_mean(u * v, spatial, volumes) / norm.sqrt().clamp_min(tiny)


def total_error(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    r"""Error of the field's total over the domain, |⟨v⟩ - ⟨u⟩| / √(⟨u²⟩ + ε); no unit.

    For a conserved field (mass, momentum, energy in a closed domain) the part of the error that
    the dynamics cannot excuse. The denominator is the truth's magnitude, not its total, which for
    momentum is about zero.
    """
    error = (spatial_mean(v, spatial, volumes) - spatial_mean(u, spatial, volumes)).abs()
    return error / (spatial_mean(u.square(), spatial, volumes) + eps).sqrt()


def _anomaly(u: Tensor, spatial: int, volumes: Tensor | None) -> Tensor:
    """u - ⟨u⟩, in the precision of `u`."""
    mean = spatial_mean(u, spatial, volumes)[(...,) + (None,) * spatial]
    return u - mean.to(u.dtype)
