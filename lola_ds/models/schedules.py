r"""Noise schedules and time priors of diffusion models.

A schedule gives the scales of the perturbation :math:`x_t = \alpha_t x + \sigma_t z`,
:math:`z \sim \mathcal{N}(0, I)`, for times :math:`t \in [0, 1]`. Scales are computed in the dtype
of the time. Times are float32 in training and in sampling: near t = 1 the logit amplifies their
rounding, which is harmless as long as both sides see the same scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from azula.noise import Schedule
from torch import Tensor

__all__ = [
    "LogLinearSchedule",
    "LogLogitSchedule",
    "RectifiedSchedule",
    "TimePrior",
    "make_schedule",
]


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"schedule: sigma_min={sigma_min} and sigma_max={sigma_max} should be increasing "
            "and positive"
        )


@dataclass(frozen=True)
class LogLinearSchedule(Schedule):
    r"""Variance exploding schedule, whose noise grows geometrically.

    .. math:: \alpha_t = 1 \qquad \sigma_t = \sigma_\min^{1 - t} \sigma_\max^t

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations
        | (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
    """

    sigma_min: float = 1e-3
    sigma_max: float = 1e3

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the scales at given times.

        Arguments:
            t: Times, with shape (*).

        Returns:
            The scales alpha and sigma, each with the shape and dtype of `t`.
        """
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.ones_like(t), torch.exp(low + t * (high - low))


@dataclass(frozen=True)
class LogLogitSchedule(Schedule):
    r"""Noise whose logarithm is a logit: most times fall near :math:`\log \sigma = \mathrm{shift}`.

    .. math:: \alpha_t = 1 \qquad
        \log \sigma_t = \mathrm{scale} \cdot
        \mathrm{logit} \big( t (\tau_\max - \tau_\min) + \tau_\min \big) + \mathrm{shift}
        \qquad \tau = \frac{\sigma}{1 + \sigma}
    """

    sigma_min: float = 1e-3
    sigma_max: float = 1e3
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the scales at given times.

        Arguments:
            t: Times, with shape (*).

        Returns:
            The scales alpha and sigma, each with the shape and dtype of `t`.
        """
        low = self.sigma_min / (1 + self.sigma_min)
        high = self.sigma_max / (1 + self.sigma_max)
        sigma = torch.exp(self.scale * torch.logit(t * (high - low) + low) + self.shift)
        return torch.ones_like(t), sigma


@dataclass(frozen=True)
class RectifiedSchedule(Schedule):
    r"""Rectified schedule: straight paths from data to noise, with bounded ratios of scales.

    .. math:: \alpha_t = 1 - (1 - \alpha_\min) \, t \qquad
        \sigma_t = \sigma_\min + (1 - \sigma_\min) \, t

    With both minima at zero these are :math:`1 - t` and :math:`t`.

    References:
        | Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
        | (Liu et al., 2022), equation 1
        | https://arxiv.org/abs/2209.03003
    """

    alpha_min: float = 1e-3
    sigma_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 <= self.alpha_min < 1 and 0 <= self.sigma_min < 1):
            raise ValueError(
                f"schedule: alpha_min={self.alpha_min} and sigma_min={self.sigma_min} should be "
                "in [0, 1)"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the scales at given times.

        Arguments:
            t: Times, with shape (*).

        Returns:
            The scales alpha and sigma, each with the shape and dtype of `t`.
        """
        alpha = 1 - (1 - self.alpha_min) * t
        sigma = self.sigma_min + (1 - self.sigma_min) * t
        return alpha, sigma


SCHEDULES = {
    "log_linear": LogLinearSchedule,
    "log_logit": LogLogitSchedule,
    "rectified": RectifiedSchedule,
}


def make_schedule(config: Mapping[str, Any]) -> Schedule:
    """Makes a schedule from its configuration.

    Arguments:
        config: The name of the schedule and its options.

    Returns:
        The schedule.

    Raises:
        ValueError: The name or an option is unknown.
    """
    options = dict(config)
    name = str(options.pop("name", None))
    if name not in SCHEDULES:
        raise ValueError(f"schedule.name='{name}' is unknown; known: {', '.join(SCHEDULES)}")
    known = [field.name for field in fields(SCHEDULES[name])]
    for key in options:
        if key not in known:
            raise ValueError(f"schedule.{key} is unknown for {name}; known: {', '.join(known)}")
    return SCHEDULES[name](**options)


@dataclass(frozen=True)
class TimePrior:
    r"""The distribution of training times in [0, 1].

    Arguments:
        distribution: ``uniform`` on [a, b], ``beta`` (a, b), ``kumaraswamy`` (a, b), whose
            cumulative function is :math:`1 - (1 - t^a)^b`, or ``triangle``, symmetric on [0, 1].
        a: The first parameter.
        b: The second parameter.

    Raises:
        ValueError: The distribution is unknown or a parameter out of range.
    """

    distribution: str = "uniform"
    a: float = 0.0
    b: float = 1.0

    def __post_init__(self) -> None:
        known = ("uniform", "beta", "kumaraswamy", "triangle")
        if self.distribution not in known:
            raise ValueError(
                f"loss.distribution='{self.distribution}' is unknown; known: {', '.join(known)}"
            )
        if self.distribution == "uniform" and not 0 <= self.a < self.b <= 1:
            raise ValueError(f"loss: uniform times need 0 <= a={self.a} < b={self.b} <= 1")
        if self.distribution in ("beta", "kumaraswamy") and not (self.a > 0 and self.b > 0):
            raise ValueError(
                f"loss: {self.distribution} times need positive a={self.a} and b={self.b}"
            )

    def draw(self, u: Tensor) -> Tensor:
        """Draws one time for each sample.

        Arguments:
            u: The samples' uniform numbers in [0, 1), with shape (B, 2), float64.

        Returns:
            Times in float64, with shape (B,).
        """
        u, v = u.unbind(dim=1)
        if self.distribution == "beta":
            draws = [np.random.default_rng(int(x * 2**53)).beta(self.a, self.b) for x in u.tolist()]
            return torch.tensor(draws, dtype=torch.float64)
        if self.distribution == "uniform":
            return self.a + (self.b - self.a) * u
        if self.distribution == "kumaraswamy":
            return (1 - (1 - u) ** (1 / self.b)) ** (1 / self.a)
        return (u + v) / 2
