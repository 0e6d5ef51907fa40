r"""Pointwise errors between a true state and its forecast.

Symbols: `u` the truth and `v` the forecast, of one broadcastable shape (…, *S) whose last
`spatial` axes are the spatial axes S; ⟨·⟩ the mean over S. Each function reduces S and keeps the
leading axes (members, trajectories, fields, times): a field is never mixed with another. Cells
have equal volumes.

Differences are taken in the inputs' precision and averaged in float64, so a result neither
depends on the number of cells that fit in float32 nor on the order of the sum.

References:
    Ohana et al., The Well, 2024 (arXiv:2412.00568), appendix on metrics.
    Rozet et al., Lost in Latent Space, 2025 (arXiv:2507.02608), section 4 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nrmse", "rmse", "spatial_mean", "vrmse"]

EPS = 1e-6  # keeps the ratio of a field that is (nearly) constant finite; unit: field squared


def spatial_mean(x: Tensor, spatial: int) -> Tensor:
    """The mean over the last `spatial` axes, summed in float64: (…, *S) -> (…) float64.

    Raises:
        ValueError: if `x` has no `spatial` axes to reduce.
    """
    if not 1 <= spatial <= x.ndim:
        raise ValueError(f"spatial={spatial}: a state of shape {tuple(x.shape)} has no such axes")
    return x.mean(dim=tuple(range(-spatial, 0)), dtype=torch.float64)


def rmse(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""Root mean squared error, √⟨(u - v)²⟩, in the field's unit: (…, *S) -> (…) float64."""
    return spatial_mean((u - v).square(), spatial).sqrt()


def nrmse(u: Tensor, v: Tensor, spatial: int, eps: float = EPS) -> Tensor:
    r"""RMSE relative to the truth's magnitude, √(⟨(u - v)²⟩ / (⟨u²⟩ + ε)); no unit.

    The Well's NRMSE (norm mode "norm"): predicting zero gives 1. A field with a large mean looks
    easy here; `vrmse` removes that.
    """
    error = spatial_mean((u - v).square(), spatial)
    return (error / (spatial_mean(u.square(), spatial) + eps)).sqrt()


def vrmse(u: Tensor, v: Tensor, spatial: int, eps: float = EPS) -> Tensor:
    r"""RMSE relative to the truth's standard deviation, √(⟨(u - v)²⟩ / (⟨(u - ⟨u⟩)²⟩ + ε)).

    No unit. Predicting the truth's spatial mean gives 1, and an independent field of the same
    statistics √2 (The Well's and Lost in Latent Space's headline metric). The variance is the
    biased one, 1/|S|, as in the latter.
    """
    mean = spatial_mean(u, spatial)[(...,) + (None,) * spatial]
    variance = spatial_mean((u - mean.to(u.dtype)).square(), spatial)
    return (spatial_mean((u - v).square(), spatial) / (variance + eps)).sqrt()
