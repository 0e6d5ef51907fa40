"""Pointwise errors between a true state and its forecast.

`u` is the truth and `v` the forecast, with broadcastable shapes (…, *S). ⟨·⟩ is the mean over *S,
which weighs cells equally or by their `volumes`, see `Grid.volumes`. Leading axes (members,
trajectories, fields, times) are kept. Differences are taken in the precision of the inputs and
averaged in float64.

References:
    | The Well (Ohana et al., 2024), appendix on metrics
    | https://arxiv.org/abs/2412.00568

    | Lost in Latent Space (Rozet et al., 2025), section 4 and appendix
    | https://arxiv.org/abs/2507.02608

    | WeatherBench 2 (Rasp et al., 2024), section on metrics
    | https://arxiv.org/abs/2308.15560
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
    """Returns the mean over the spatial axes, in float64.

    Arguments:
        x: The input tensor, with shape (…, *S).
        spatial: The number of spatial axes.
        volumes: The relative volumes of the cells, with shape (*S) and mean 1. Equal by default.

    Returns:
        The means, with shape (…).

    Raises:
        ValueError: The input has fewer axes.
    """
    if not 1 <= spatial <= x.ndim:
        raise ValueError(f"spatial={spatial}: a state of shape {tuple(x.shape)} has no such axes")
    if volumes is not None:
        x = x * volumes.to(x.device)
    return x.mean(dim=tuple(range(-spatial, 0)), dtype=torch.float64)


def rmse(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the root mean squared error √⟨(u - v)²⟩, in the field's unit, with shape (…).

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    return spatial_mean((u - v).square(), spatial, volumes).sqrt()


def mae(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the mean absolute error ⟨|u - v|⟩, in the field's unit, with shape (…).

    It is the continuous ranked probability score of a single state (WeatherBench 2).

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    return spatial_mean((u - v).abs(), spatial, volumes)


def nrmse(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Returns the RMSE relative to the magnitude √(⟨u²⟩ + ε) of the truth, with shape (…).

    This is The Well's NRMSE with norm mode "norm". A forecast of zero scores 1.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
        eps: The constant ε, in the field's unit squared.
    """
    error = spatial_mean((u - v).square(), spatial, volumes)
    return (error / (spatial_mean(u.square(), spatial, volumes) + eps)).sqrt()


def vrmse(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Returns the RMSE relative to the deviation √(⟨(u - ⟨u⟩)²⟩ + ε) of the truth, with shape (…).

    The truth's spatial mean scores 1, an independent field of the same statistics √2. The variance
    is the biased one, 1/|S|, as in Lost in Latent Space.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
        eps: The constant ε, in the field's unit squared.
    """
    variance = spatial_mean(_anomaly(u, spatial, volumes).square(), spatial, volumes)
    return (spatial_mean((u - v).square(), spatial, volumes) / (variance + eps)).sqrt()


def worst_error(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    """Returns the largest error max |u - v| of any cell, in the field's unit, with shape (…).

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial: The number of spatial axes.
    """
    return (u - v).abs().amax(dim=tuple(range(-spatial, 0))).to(torch.float64)


def correlation(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns Pearson's correlation ⟨u' v'⟩ / √(⟨u'²⟩ ⟨v'²⟩), u' = u - ⟨u⟩, with shape (…).

    A constant field scores 0.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    u, v = _anomaly(u, spatial, volumes), _anomaly(v, spatial, volumes)
    norm = spatial_mean(u.square(), spatial, volumes) * spatial_mean(v.square(), spatial, volumes)
    tiny = torch.finfo(torch.float64).tiny
    return spatial_mean(u * v, spatial, volumes) / norm.sqrt().clamp_min(tiny)


def total_error(
    u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Returns the error of the domain's total, |⟨v⟩ - ⟨u⟩| / √(⟨u²⟩ + ε), with shape (…).

    It should vanish for conserved fields (mass, momentum, energy in a closed domain). The
    denominator is the truth's magnitude, as its total may be zero.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
        eps: The constant ε, in the field's unit squared.
    """
    error = (spatial_mean(v, spatial, volumes) - spatial_mean(u, spatial, volumes)).abs()
    return error / (spatial_mean(u.square(), spatial, volumes) + eps).sqrt()


def _anomaly(u: Tensor, spatial: int, volumes: Tensor | None) -> Tensor:
    """u - ⟨u⟩, in the precision of `u`."""
    mean = spatial_mean(u, spatial, volumes)[(...,) + (None,) * spatial]
    return u - mean.to(u.dtype)
