"""Exponential moving average of the float32 master weights, sharded as ZeRO shards them.

    ema_k = d_k ema_{k-1} + (1 - d_k) w_k,    d_k = min(decay, (1 + k) / (10 + k))

The ramp d_k (Tarvainen & Valpola, 2017, and TensorFlow's moving averages) lets short runs forget
their initialisation. Each rank averages its own fragments: 4 N / world bytes for N parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import kernels
from .fragments import Fragment


class Ema:
    """The moving average of `fragments`.

    Arguments:
        fragments: this rank's parts of the parameters; their current values start the average.
        decay: d in [0, 1), per applied optimizer step.
    """

    def __init__(self, fragments: Sequence[Fragment], decay: float) -> None:
        self.fragments = list(fragments)
        self.decay = decay
        self.values: dict[str, Tensor] = {f.name: f.master.float().clone() for f in self.fragments}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.values[f.name] for f in self.fragments]
        kernels.ema([averages], [f.master for f in self.fragments], [decay])
