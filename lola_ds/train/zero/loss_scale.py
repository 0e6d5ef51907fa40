"""Loss scaling: gradients of float16 operations kept within the range of float16.

float16 holds magnitudes from 6e-8 to 65504; gradients are often smaller. So the loss is multiplied
by a scale s before the backward pass, and its gradients, float32 as the parameters are, are divided
by s before they are clipped or used. s is a power of two, so neither changes a digit. It is halved
by an overflow, whose step is left out, and doubled after 2000 steps without one (Micikevicius et
al., 2018, https://arxiv.org/abs/1710.03740; the numbers are those of torch's GradScaler).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_START, _PATIENCE = 2.0**16, 2000


class LossScale:
    """The scale of the loss; 1 for ever unless enabled.

    Arguments:
        enabled: whether the network runs in float16.
        state: the `state_dict` of an earlier scale.
    """

    def __init__(self, enabled: bool, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.enabled = enabled
        self.value = float(state.get("value", _START)) if enabled else 1.0
        self.overflows = int(state.get("overflows", 0))
        self._calm = int(state.get("calm", 0))

    def multiply(self, engine: Any, loss: Tensor) -> Tensor:
        """The loss to call `engine.backward` with; ZeRO scales, and divides again, by itself."""
        if not self.enabled:
            return loss
        if engine.zero_optimization_stage():
            engine.optimizer.override_loss_scale(self.value)
            return loss
        return loss * self.value

    def divide(self, engine: Any) -> None:
        """Divides stage 0's gradients by the scale; to be called before `engine.step`."""
        if self.enabled and engine.zero_optimization_stage() == 0:
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.value)

    def overflowed(self, loss: float, norm: float) -> bool:
        """Whether a step must be left out because its scale was too large; sets the next scale.

        A loss that is not finite, or a gradient at scale 1, is no overflow: it is the detector's.

        Arguments:
            loss: of the step, not scaled.
            norm: of its gradients.
        """
        if not self.enabled or not math.isfinite(loss):
            return False
        if math.isfinite(norm):
            self._calm += 1
            if self._calm == _PATIENCE:
                self.value, self._calm = 2 * self.value, 0
            return False
        self._calm = 0
        if self.value == 1.0:
            return False
        self.value /= 2
        self.overflows += 1
        return True

    def numbers(self) -> dict[str, float]:
        """What to record of it at every step."""
        if not self.enabled:
            return {}
        return {"train/loss_scale": self.value, "train/overflows": self.overflows}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to scale alike."""
        return {"value": self.value, "overflows": self.overflows, "calm": self._calm}
