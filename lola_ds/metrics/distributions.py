"""Distances between the distributions of the values in two states, wherever in space they are.

A forecast that has lost the truth's phase may still have its statistics: as many shocks, as strong.
The Wasserstein-1 distance is ∫ |F_u(x) - F_v(x)| dx, with F the cumulative distribution over cells,
weighted by their volumes.

References:
    | Optimal Transport, chapter 6 (Villani, 2009)
    | https://doi.org/10.1007/978-3-540-71050-9

    | Sliced and Radon Wasserstein barycenters of measures (Bonneel et al., 2015)
    | https://doi.org/10.1007/s10851-014-0506-3
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lola_ds.metrics.errors import spatial_mean

__all__ = ["sliced_wasserstein", "wasserstein"]

DIRECTIONS = 16  # projections of the sliced distance, the same for every state


def wasserstein(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the Wasserstein-1 distance of the cells' values, in the field's unit, with shape (…).

    On equal cells, it is the mean absolute difference of the sorted values.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    u, v = torch.broadcast_tensors(u.flatten(-spatial), v.flatten(-spatial))
    if volumes is None:
        return (_sorted(u) - _sorted(v)).abs().mean(-1, dtype=torch.float64)
    mass = (volumes / volumes.sum()).flatten().to(u.device)
    values, order = torch.cat([u, v], dim=-1).to(torch.float64).sort(dim=-1)
    excess = torch.cat([mass, -mass])[order].cumsum(dim=-1)  # F_u - F_v right of each value
    return (excess[..., :-1].abs() * values.diff(dim=-1)).sum(dim=-1)


def _sorted(x: Tensor) -> Tensor:
    """Sorts along the last axis; on a CPU by NumPy, which is ten times faster without the order."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=-1))
    return x.sort(dim=-1).values


def sliced_wasserstein(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    """Returns the Wasserstein-1 distance of all fields together, with shape (…).

    Each cell is a point of ℝ^C, its fields divided by the truth's standard deviations. The result
    is the mean over projections on fixed random directions. It depends on relations between fields,
    which distances of single fields do not.

    Arguments:
        u, v: The truth and the forecast, with shape (…, C, *S).
        spatial, volumes: The spatial axes, as in `spatial_mean`.
    """
    field = -spatial - 1
    expand = (...,) + (None,) * spatial
    mean = spatial_mean(u, spatial, volumes)[expand].to(u.dtype)
    deviation = spatial_mean((u - mean).square(), spatial, volumes)[expand].sqrt().to(u.dtype)
    scale = deviation.clamp_min(torch.finfo(u.dtype).tiny ** 0.5)
    directions = _directions(u.shape[field]).to(u)
    u, v = (
        torch.tensordot(directions, ((x - mean) / scale).movedim(field, 0), 1).movedim(0, field)
        for x in (u, v)
    )
    return wasserstein(u, v, spatial, volumes).mean(dim=-1)


def _directions(channels: int) -> Tensor:
    """Unit vectors (DIRECTIONS, C), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(DIRECTIONS, channels, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)
