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

import functools
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LAWS = ("poisson_mod", "poisson_truncated")


@dataclass(frozen=True)
class ContextLaw:
    r"""The random law of context masks.

    Arguments:
        law: ``poisson_mod`` or ``poisson_truncated``.
        rate: the rate :math:`\lambda` of the Poisson law.
        atleast: the least number :math:`c_\min` of known frames.
        rho: the probability :math:`\rho` that known frames stand at the start.

    Raises:
        ValueError: if the law is unknown or a number is out of range.
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

    def draw(self, length: int, generator: torch.Generator | None = None) -> tuple[int, bool]:
        """Draws the number of known frames and whether they stand at the start.

        Arguments:
            length: the number L of frames in the window.
            generator: a CPU generator; the result depends on nothing else.

        Raises:
            ValueError: if the window has no room for `atleast` known frames and an unknown one.
        """
        if length <= self.atleast:
            raise ValueError(
                f"a window of {length} frames leaves nothing to predict after "
                f"{self.atleast} known; make trajectory.length larger"
            )
        draw_count = {"poisson_mod": self._mod, "poisson_truncated": self._truncated}[self.law]
        count = draw_count(length, generator)
        at_start = torch.rand((), generator=generator).item() < self.rho
        return count, at_start

    def _mod(self, length: int, generator: torch.Generator | None) -> int:
        rate = torch.tensor(float(self.rate))
        k = int(torch.poisson(rate, generator=generator))
        return k % (length - self.atleast) + self.atleast

    def _truncated(self, length: int, generator: torch.Generator | None) -> int:
        u = torch.rand((), dtype=torch.float64, generator=generator).item()
        below = bisect_right(_truncated_cdf(self.rate, self.atleast, length), u)
        return min(self.atleast + below, length - 1)


@functools.cache
def _truncated_cdf(rate: float, atleast: int, length: int) -> list[float]:
    """The probabilities of at most c known frames, for c from `atleast` to L - 1."""
    log_weights = [c * math.log(rate) - math.lgamma(c + 1) for c in range(atleast, length)]
    return torch.tensor(log_weights, dtype=torch.float64).softmax(dim=0).cumsum(dim=0).tolist()


def draw_context_masks(
    law: ContextLaw, length: int, generators: Iterable[torch.Generator | None]
) -> Tensor:
    """Draws one mask for each generator.

    Arguments:
        law: the law of the masks.
        length: the number L of frames in a window.
        generators: one CPU generator for each sample.

    Returns:
        A boolean mask with shape (B, L), True where a frame is known.
    """
    counts, at_start = zip(*(law.draw(length, generator) for generator in generators), strict=True)
    frames, count = torch.arange(length), torch.tensor(counts)[:, None]
    start = torch.tensor(at_start)[:, None]
    return torch.where(start, frames < count, frames >= length - count)
