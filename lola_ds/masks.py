r"""Context masks: which frames of a window are known.

An emulator completes a window of :math:`L` frames given :math:`c` known ones. In training the
number :math:`c` is random, drawn from one of two laws with rate :math:`\lambda`:

- ``poisson_mod``: :math:`c = (K \bmod (L - c_\min)) + c_\min` with :math:`K \sim
  \mathrm{Poisson}(\lambda)`;
- ``poisson_truncated``: :math:`p(c) \propto \lambda^c / c!` for :math:`c_\min \leq c \leq L - 1`,
  a Poisson law conditioned on leaving at least one frame known and one unknown.

Known frames stand at the start of the window with probability :math:`\rho`, else at its end (the
emulator then predicts backward in time).

References:
    | Lost in Latent Space: An Empirical Study of Latent Diffusion Models for Physics Emulation
    | (Rozet et al., 2025)
    | https://arxiv.org/abs/2507.02608
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LAWS", "ContextLaw", "draw_context_masks"]

LAWS = ("poisson_mod", "poisson_truncated")


@dataclass(frozen=True)
class ContextLaw:
    r"""The random law of context masks.

    Arguments:
        law: ``poisson_mod`` or ``poisson_truncated``.
        rate: The rate :math:`\lambda` of the Poisson law.
        atleast: The least number :math:`c_\min` of known frames.
        rho: The probability :math:`\rho` that known frames stand at the start.

    Raises:
        ValueError: The law is unknown or a number is out of range.
    """

    law: str = "poisson_truncated"
    rate: float = 2.0
    atleast: int = 1
    rho: float = 1.0

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"context law '{self.law}' is unknown; known: {', '.join(LAWS)}")
        if not self.rate > 0:
            raise ValueError(f"context rate={self.rate} should be positive")
        if self.atleast < 1:
            raise ValueError(f"context atleast={self.atleast} should be at least 1")
        if not 0 <= self.rho <= 1:
            raise ValueError(f"context rho={self.rho} should be a probability")

    def probabilities(self, length: int) -> Tensor:
        """Computes the probabilities of the numbers of known frames.

        Arguments:
            length: The number L of frames in a window.

        Returns:
            The probabilities of `atleast` to L - 1 known frames, in float64.

        Raises:
            ValueError: The window has no room for `atleast` known frames and an unknown one.
        """
        if length <= self.atleast:
            raise ValueError(
                f"a window of {length} frames leaves nothing to predict after "
                f"{self.atleast} known; make trajectory.length larger"
            )
        if self.law == "poisson_truncated":
            return _poisson(self.rate, range(self.atleast, length))
        choices = length - self.atleast
        last = int(self.rate + 12 * math.sqrt(self.rate) + 30)  # beyond, less than 1e-16
        rows = 1 + last // choices
        return _poisson(self.rate, range(rows * choices)).view(rows, choices).sum(dim=0)


def _poisson(rate: float, counts: range) -> Tensor:
    """A Poisson law conditioned on `counts`, float64."""
    log_weights = [c * math.log(rate) - math.lgamma(c + 1) for c in counts]
    return torch.tensor(log_weights, dtype=torch.float64).softmax(dim=0)


def draw_context_masks(law: ContextLaw, length: int, u: Tensor) -> Tensor:
    """Draws one mask for each sample.

    Arguments:
        law: The law of the masks.
        length: The number L of frames in a window.
        u: The samples' uniform numbers in [0, 1), with shape (B, 2), float64; a mask depends on
            nothing else.

    Returns:
        A boolean mask with shape (B, L), True where a frame is known.
    """
    cdf = law.probabilities(length).cumsum(dim=0)
    below = torch.searchsorted(cdf, u[:, :1].contiguous(), right=True)
    count = (law.atleast + below).clamp(max=length - 1)
    frames = torch.arange(length)
    return torch.where(u[:, 1:] < law.rho, frames < count, frames >= length - count)
