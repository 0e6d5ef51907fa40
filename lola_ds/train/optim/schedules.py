"""Learning-rate schedules: functions of the optimizer step alone.

So a resumed run needs no scheduler state. With t in [0, 1] the fraction of the run done and
f = 1e-3 the last fraction of the peak:

    cosine       f + (1 - f) (1 + cos(pi t)) / 2
    linear       f + (1 - f) (1 - t)
    exponential  f^t
    constant     1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

FLOOR = 1e-3


def cosine(t: float) -> float:
    """Half a period of the cosine, from 1 to `FLOOR`."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * t))


def linear(t: float) -> float:
    """A straight line from 1 to `FLOOR`."""
    return FLOOR + (1 - FLOOR) * (1 - t)


def exponential(t: float) -> float:
    """A constant ratio between steps, from 1 to `FLOOR`."""
    return FLOOR**t


def constant(t: float) -> float:
    """No decay."""
    return 1.0


SCHEDULES = {f.__name__: f for f in (cosine, linear, exponential, constant)}


def make_schedule(config: dict[str, Any], total_steps: int) -> Callable[[int], float]:
    """The learning rate of each optimizer step, numbered from 0.

    A linear warm-up over `warmup` steps multiplies the decay named by `scheduler`.

    Arguments:
        config: the `optim` group.
        total_steps: the length of the run; the decay ends there.
    """
    peak, warmup = config["learning_rate"], config["warmup"]
    decay = SCHEDULES[config["scheduler"]]

    def learning_rate(step: int) -> float:
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return peak * ramp * decay(min(1.0, step / max(1, total_steps)))

    return learning_rate
