"""How moving averages weigh the weights of the steps before.

An average is updated after every optimizer step k = 1, 2, …

    ema_k = d_k ema_{k-1} + (1 - d_k) w_k

with one of two decays:

- Exponential, d_k = min(decay, (1 + k) / (10 + k)). With the ramp [1]_, short runs forget their
  initialisation.
- Power law [2]_, d_k = (1 - 1/k)^(gamma + 1): the weights of a step count in proportion to the
  gamma-th power of its number, so the average forgets its beginning at every length of training.
  gamma is given by sigma_rel, the width of this profile relative to the length of the training,

      sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)),

  0.05 to 0.15 in practice. `lola_ds.train.checkpoint.posthoc` reconstructs averages of any other
  sigma_rel from those that were kept.

References:
    .. [1] Mean teachers are better role models (Tarvainen & Valpola, 2017)
       https://arxiv.org/abs/1703.01780
    .. [2] Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024)
       https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["POWER_LAW", "Exponential", "PowerLaw", "Profile", "make_profiles"]

POWER_LAW = "power_"
"""The prefix of the kinds of power-law averages."""


@dataclass(frozen=True)
class Exponential:
    """An exponential average with decay d in [0, 1)."""

    decay_rate: float

    @property
    def kind(self) -> str:
        """The name of the average in checkpoints."""
        return f"ema_{self.decay_rate}"

    def decay(self, step: int) -> float:
        """d_k at optimizer step k, counted from 1."""
        return min(self.decay_rate, (1 + step) / (10 + step))


@dataclass(frozen=True)
class PowerLaw:
    """A power-law average of relative width sigma_rel in (0, WIDEST]. The widest is the mean."""

    WIDEST: ClassVar[float] = 12**-0.5

    sigma_rel: float

    @property
    def kind(self) -> str:
        """The name of the average in checkpoints."""
        return f"{POWER_LAW}{self.sigma_rel}"

    @property
    def gamma(self) -> float:
        """The exponent: the one root gamma >= 0 of the cubic that `sigma_rel` defines."""
        inverse = self.sigma_rel**-2
        return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def decay(self, step: int) -> float:
        """d_k at optimizer step k, counted from 1."""
        return (1 - 1 / step) ** (self.gamma + 1)


Profile = Exponential | PowerLaw


def make_profiles(settings: Mapping[str, Any]) -> list[Profile]:
    """Returns the averages of the configuration group `ema`, the principal one first.

    Arguments:
        settings: The group, with a decay or a list of decays, and widths of power-law averages.
    """
    decays = settings["decay"] if isinstance(settings["decay"], list) else [settings["decay"]]
    exponential = [Exponential(float(decay)) for decay in decays if decay is not None]
    return exponential + [PowerLaw(float(sigma_rel)) for sigma_rel in settings["power_law"]]
