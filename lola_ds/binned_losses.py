"""Binned losses: by noise level, by lead time.

Losses in K bins are a tensor of shape (2, K): each bin's weighted sum of losses, and its sum
of weights, both divided by the batch size. Such sums average over micro-batches and ranks as losses
do; the ratio of the two rows is the bin's mean loss, at whatever world size.

Shapes: B batch, L frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bin_means", "by_lead", "by_noise"]

NOISE_DECADES = (-3, 3)
"""Bins by noise level are decades of sigma / alpha, from 1e-3 to 1e3."""


def by_noise(loss: Tensor, weight: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Bins losses by decade of noise; levels beyond the ends count for the first or last bin.

    Arguments:
        loss: The samples' losses, with shape (B,).
        weight: The samples' weights, with shape (B,).
        alpha: The scale of the signal, with shape (B,).
        sigma: The scale of the noise, with shape (B,).

    Returns:
        Sums of losses and of weights, with shape (2, K).
    """
    low, high = NOISE_DECADES
    decade = torch.log10(sigma / alpha).floor().clamp(low, high - 1).long() - low
    return _sums(loss, weight, decade, high - low)


def by_lead(loss: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Bins losses by lead time, 1 to L - 1: a frame's distance to the nearest known one.

    Arguments:
        loss: The frames' losses, with shape (B, L).
        weight: The samples' weights, with shape (B,).
        mask: True where a frame is known, with shape (B, L); known frames are left out.

    Returns:
        Sums of losses and of weights, with shape (2, L - 1).
    """
    frames = loss.shape[1]
    index = torch.arange(frames, device=loss.device)
    distance = (index[:, None] - index[None, :]).abs()
    lead = torch.where(mask[:, None], distance, frames).amin(dim=2).clamp(max=frames - 1)
    unknown = weight[:, None] * ~mask
    return _sums(loss, unknown, lead - 1, frames - 1)


def bin_means(name: str, sums: Sequence[float]) -> dict[str, float]:
    """Computes mean losses by bin.

    Arguments:
        name: `by_noise` or `by_lead`.
        sums: The sums of losses of the bins, then their sums of weights, with length 2K.

    Returns:
        Means by name, such as `{"by_lead/1": 0.2, …}`; empty bins are left out.
    """
    count = len(sums) // 2
    return {
        f"{name}/{label}": total / weight
        for label, total, weight in zip(_labels(name, count), sums[:count], sums[count:])
        if weight > 0
    }


def _labels(name: str, bins: int) -> list[str]:
    """A decade's lower end, or the lead in frames."""
    if name == "by_noise":
        return [f"1e{NOISE_DECADES[0] + i:+d}" for i in range(bins)]
    return [str(i + 1) for i in range(bins)]


def _sums(loss: Tensor, weight: Tensor, bins: Tensor, count: int) -> Tensor:
    loss, weight, size = loss.detach().float(), weight.float(), len(loss)
    sums = loss.new_zeros(2, count)
    flat = bins.clamp(min=0).flatten()
    sums[0].index_add_(0, flat, torch.where(weight > 0, weight * loss, 0.0).flatten())
    sums[1].index_add_(0, flat, weight.flatten())
    return sums / size
