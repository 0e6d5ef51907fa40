r"""Distances between the distributions of values in two states, wherever in space they are.

A forecast that has lost the truth's phase may still have its climate: as many shocks, as strong.
Wasserstein's distance of order 1 is the least work of turning one distribution into the other,
∫ |F_u(x) - F_v(x)| dx with F the cumulative distribution over the cells, weighted by their volumes.

References:
    Villani, Optimal Transport, 2009, chapter 6.
    Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, Journal of Mathematical
        Imaging and Vision 51, 2015.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lola_ds.metrics.errors import spatial_mean

__all__ = ["sliced_wasserstein", "wasserstein"]

DIRECTIONS = 16  # projections of the sliced distance, the same for every state


def wasserstein(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Wasserstein-1 distance of the cells' values, in the field's unit: (…, *S) -> (…) float64.

    On equal cells, the mean absolute difference of the sorted values.
    """
    u, v = torch.broadcast_tensors(u.flatten(-spatial), v.flatten(-spatial))
    if volumes is None:
        return (_sorted(u) - _sorted(v)).abs().mean(-1, dtype=torch.float64)
    mass = (volumes / volumes.sum()).flatten().to(u.device)
    values, order = torch.cat([u, v], dim=-1).to(torch.float64).sort(dim=-1)
    excess = torch.cat([mass, -mass])[order].cumsum(dim=-1)  # F_u - F_v right of each value
    return (excess[..., :-1].abs() * values.diff(dim=-1)).sum(dim=-1)


def _sorted(x: Tensor) -> Tensor:
    """Sorted along the last axis; by NumPy on a CPU, ten times faster than torch, which finds the
    order too."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=-1))
    return x.sort(dim=-1).values


def sliced_wasserstein(u: Tensor, v: Tensor, spatial: int, volumes: Tensor | None = None) -> Tensor:
    r"""Wasserstein-1 distance of all fields together: (…, C, *S) -> (…) float64; no unit.

    A cell is a point of ℝ^C, its fields divided by the truth's standard deviations; the result is
    the mean distance of the projections on fixed directions, spread uniformly at random. It sees
    relations between fields (pressure against density) that field by field distances miss.
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
    """(DIRECTIONS, C) unit vectors, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(DIRECTIONS, channels, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)
