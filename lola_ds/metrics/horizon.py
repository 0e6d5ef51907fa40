"""How long a forecast is useful.

References:
    | Machine learning–accelerated computational fluid dynamics (Kochkov et al., 2021)
    | https://arxiv.org/abs/2102.01010

    | APEBench: A Benchmark for Autoregressive Neural Emulators of PDEs (Koehler et al., 2024)
    | https://arxiv.org/abs/2411.00180
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correlation_time"]


def correlation_time(rho: Tensor, times: Tensor, threshold: float = 0.8) -> Tensor:
    """Returns the lead time at which the correlation falls below a threshold.

    It is linear between lead times, from ρ = 1 at lead time 0. A forecast that stays above gets the
    last lead time, a lower bound.

    Arguments:
        rho: The correlations with the truth, with shape (…, T).
        times: The increasing, positive lead times, with shape (T).
        threshold: The threshold, less than 1.

    Returns:
        The times in the unit of `times`, with shape (…).
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
