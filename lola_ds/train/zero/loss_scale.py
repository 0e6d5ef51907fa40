"""Loss scaling, which keeps the gradients of float16 operations within the range of float16.

float16 holds magnitudes from 6e-8 to 65504, and gradients are often smaller. The loss is therefore
multiplied by a scale before the backward pass, and its float32 gradients are divided by the scale
before they are clipped or used. The scale is a power of two, so neither rounds. An overflow halves
it, and its step is skipped; 2000 steps in a row without one double it. The numbers are those of
torch's GradScaler.

References:
    | Mixed Precision Training (Micikevicius et al., 2018)
    | https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LossScale"]

_START, _PATIENCE = 2.0**16, 2000


class LossScale:
    """The scale of the loss; constantly 1 unless it is enabled.

    Arguments:
        enabled: Whether the network runs in float16.
        state: The `state_dict` to resume from.
    """

    def __init__(self, enabled: bool, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.enabled = enabled
        self.value = float(state.get("value", _START)) if enabled else 1.0
        self.overflows = int(state.get("overflows", 0))
        self._calm = int(state.get("calm", 0))

    @property
    def factor(self) -> float | None:
        """The factor of the loss (`Engine.backward`); None if the loss is not scaled."""
        return self.value if self.enabled else None

    def overflowed(self, loss: float, norm: float) -> bool:
        """Whether a step must be skipped because its scale was too large; sets the next scale.

        A loss that is not finite, or such a gradient at scale 1, is an anomaly and no overflow.

        Arguments:
            loss: The loss of the step, not scaled.
            norm: The norm of its gradients.
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
        """Returns what to record at every step."""
        if not self.enabled:
            return {}
        return {"train/loss_scale": self.value, "train/overflows": self.overflows}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run continues from."""
        return {"value": self.value, "overflows": self.overflows, "calm": self._calm}
