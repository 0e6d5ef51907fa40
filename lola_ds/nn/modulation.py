r"""Modulation of residual blocks by a vector.

A block with :math:`C` channels is modulated by :math:`n` vectors of :math:`C` scales and shifts.
They are either computed from a vector of :math:`D` features (a time, a label) by two linear layers
with SiLU between, or, when :math:`D = 0`, parameters of their own. Both start small, so that a
block starts near the identity.

References:
    | Scalable Diffusion Models with Transformers (Peebles et al., 2022)
    | https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lola_ds.nn.layers import disable_autocast

__all__ = ["AdaZero", "make_modulation", "modulation"]


class AdaZero(nn.Sequential):
    """Maps a modulation vector to scales and shifts that start small; float32.

    Arguments:
        features: The number D of features of the vector.
        outputs: The number of values.
    """

    def __init__(self, features: int, outputs: int) -> None:
        last = nn.Linear(features, outputs)
        with torch.no_grad():
            last.weight.mul_(1e-2)
        super().__init__(nn.Linear(features, features), nn.SiLU(), last)

    @disable_autocast
    def forward(self, mod: Tensor) -> Tensor:
        """Maps modulation vectors (B, D) to outputs (B, outputs)."""
        return super().forward(mod)


def make_modulation(features: int, shape: Sequence[int]) -> nn.Module | nn.Parameter:
    """Makes the module or the parameter that scales and shifts come from.

    Arguments:
        features: The number D of features of the vector; with 0, the modulation is a parameter.
        shape: The number n of scales and shifts and the number C of channels, then ones.

    Returns:
        An `AdaZero`, or a parameter where D = 0.
    """
    if features:
        return AdaZero(features, shape[0] * shape[1])
    return nn.Parameter(1e-2 * torch.randn(*shape))


def modulation(source: nn.Module | nn.Parameter, mod: Tensor | None, n: int) -> Sequence[Tensor]:
    """Computes scales and shifts.

    Arguments:
        source: What `make_modulation` made.
        mod: Modulation vector, with shape (B, D), or None when D = 0.
        n: The number of scales and shifts.

    Returns:
        The n scales and shifts, each with shape (B, C), or (1, C) where they are parameters.
    """
    if isinstance(source, nn.Parameter):
        return source.reshape(n, 1, -1).unbind(0)
    return source(mod).chunk(n, dim=-1)
