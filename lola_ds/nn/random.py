"""Noise that depends on a sample's own seed, and on nothing else.

It does not change with the number of ranks, the loader's workers or the size of micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lola_ds.kernels import seeded_normal


def draw_normal(shape: Sequence[int], seeds: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Draws standard normal noise, sample by sample, on the device where it is used.

    Arguments:
        shape: the shape of one sample.
        seeds: one seed for each sample, with shape (B,), int64, on the CPU. Kinds of devices draw
            other noise from them.
        device: where the noise is drawn.

    Returns:
        Noise, float32, with shape (B, *shape).
    """
    return seeded_normal(seeds, torch.Size(shape), torch.device(device))
