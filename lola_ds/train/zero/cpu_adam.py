r"""DeepSpeed's AdamW for weights in host memory, where a resumed run takes the very same steps.

DeepSpeed's operator keeps :math:`\beta_i^t` as a running float32 product, which a run that resumes
at step t replaces by a power: another last bit. Its bias correction is therefore switched off and
folded into the other coefficients, in float64, from the step and the operator's float32
:math:`\beta_i` alone (:math:`1 - 0.999` is off by 1e-5 in float32):

.. math::
    w \leftarrow w - \eta \lambda w - \frac{\eta}{c_1} \frac{m}{\sqrt{v / c_2} + \epsilon}
      = w - a \frac{\eta \lambda}{a} w - a \frac{m}{\sqrt{v} + \epsilon \sqrt{c_2}},
    \qquad a = \eta \frac{\sqrt{c_2}}{c_1}, \quad c_i = 1 - \beta_i^t
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def deepspeed_cpu_adam(
    config: dict[str, Any], parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """DeepSpeed's vectorised AdamW for the CPU; compiled at its first use.

    Arguments:
        config: the `optim` group.
        parameters: the trainable parameters; what is stepped must lie in host memory.

    Raises:
        ValueError: the operator cannot be compiled here.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        optimizer: Any = DeepSpeedCPUAdam(
            parameters,
            lr=0.0,
            betas=tuple(config["betas"]),
            weight_decay=config["weight_decay"],
        )
    except RuntimeError as error:
        raise ValueError(
            f"DeepSpeed's CPU Adam cannot be compiled here ({error.__cause__ or error}); set "
            "zero_force_ds_cpu_optimizer to false in the DeepSpeed file for torch's AdamW"
        ) from error
    optimizer.ds_opt_adam = _StepwiseAdam(optimizer.ds_opt_adam)
    return optimizer


class _StepwiseAdam:
    """The operator, with a bias correction that is a function of the step.

    Arguments:
        operator: DeepSpeed's extension.
    """

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def adam_update(
        self,
        index: int,
        step: Any,
        rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float,
        _correct: bool,
        *tensors: torch.Tensor,
    ) -> None:
        """One step of `tensors`: weights, gradient and both moments, in place."""
        first, second = (
            1 - _float32(beta1) ** int(step),
            math.sqrt(1 - _float32(beta2) ** int(step)),
        )
        ratio = second / first
        self.operator.adam_update(
            index,
            int(step),
            rate * ratio,
            beta1,
            beta2,
            epsilon * second,
            decay / ratio,
            False,
            *tensors,
        )

    def destroy_adam(self, index: int) -> None:
        """Frees the operator's memory of an optimizer."""
        self.operator.destroy_adam(index)


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()
