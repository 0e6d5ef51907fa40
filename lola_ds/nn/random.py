"""Random numbers that depend on a sample's own seed, and on nothing else.

Noise, times and masks drawn this way do not change with the number of ranks, the loader's workers
or the size of micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def make_generators(seeds: Tensor | Sequence[int]) -> list[torch.Generator]:
    """Makes one CPU generator for each seed, with shape (B,)."""
    values = seeds.tolist() if torch.is_tensor(seeds) else seeds
    return [torch.Generator().manual_seed(int(seed)) for seed in values]


def draw_normal(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws standard normal noise, sample by sample.

    Each CPU generator seeds another one on `device`, so noise is drawn where it is used.

    Arguments:
        shape: the shape of one sample.
        generators: one CPU generator for each sample, advanced by one draw.
        device: where the noise is drawn.

    Returns:
        Noise, float32, with shape (B, *shape).
    """
    noise = torch.empty((len(generators), *shape), device=device)
    for x, generator in zip(noise, generators):
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), out=x)
    return noise
