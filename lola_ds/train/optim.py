"""Optimizers and learning-rate schedules.

The learning rate is a function of the optimizer step alone, so that a resumed run needs no
scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def make_optimizer(parameters: Iterable[nn.Parameter], config: dict[str, Any]) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with the keys of the `optim` group.

    The learning rate starts at 0: the loop sets it before every step.
    """
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(config["betas"][0], config["betas"][1]),
        weight_decay=config["weight_decay"],
        fused=True,
    )


def make_schedule(config: dict[str, Any], total_steps: int) -> Callable[[int], float]:
    """The learning rate of each optimizer step, numbered from 0.

    A linear warm-up over `warmup` steps multiplies `cosine` (half a period, down to 1e-3 of the
    peak), `linear` (down to 1e-3 of the peak) or `constant`.
    """
    peak, warmup, shape = config["learning_rate"], config["warmup"], config["scheduler"]
    floor = 1e-3

    def learning_rate(step: int) -> float:
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        t = min(1.0, step / max(1, total_steps))
        decay = {
            "cosine": floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)),
            "linear": floor + (1 - floor) * (1 - t),
            "constant": 1.0,
        }[shape]
        return peak * ramp * decay

    return learning_rate
