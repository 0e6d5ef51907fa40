r"""How long a forecast stays useful.

References:
    Kochkov et al., Machine learning–accelerated computational fluid dynamics, PNAS 118, 2021, and
    Koehler et al., APEBench, 2024 (arXiv:2411.00180): the time for which the correlation with the
    truth stays above 0.95 or 0.8.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correlation_time"]


def correlation_time(rho: Tensor, times: Tensor, threshold: float = 0.8) -> Tensor:
    r"""The lead time at which correlation falls below a threshold: (…, T) -> (…), float64.

    Linear between lead times, from ρ = 1 at lead time 0. A forecast that stays above gets the last
    lead time, which is then a lower bound.

    Arguments:
        rho: correlations (…, T) with the truth.
        times: lead times (T,), increasing and positive, in any unit: the result's.
        threshold: below 1.
    """
    rho, times = rho.to(torch.float64), times.to(torch.float64)
    after = torch.cat([rho, torch.full_like(rho[..., :1], -torch.inf)], dim=-1)
    first = (after < threshold).to(torch.int64).argmax(dim=-1, keepdim=True)
    rho = torch.cat([torch.ones_like(rho[..., :1]), rho], dim=-1)
    times = torch.cat([times.new_zeros(1), times])
    last = (first + 1).clamp_max(len(times) - 1)
    high, low = rho.gather(-1, first), rho.gather(-1, last)
    share = ((high - threshold) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    crossing = times[first] + share * (times[last] - times[first])
    return torch.where(first == len(times) - 1, times[-1], crossing).squeeze(-1)
