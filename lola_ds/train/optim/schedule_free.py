"""Schedule-free AdamW: averaging in place of a decay of the learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Algorithm 1 of Defazio et al., "The Road Less Scheduled" (2024), with Adam's denominator.

        y = (1 - β₁) z + β₁ x                              where the gradient g is taken
        v ← β₂ v + (1 - β₂) g²
        z ← z - γ (g / (sqrt(v / (1 - β₂^t)) + ε) + λ y)
        x ← (1 - c) x + c z,    c = γ² / sum of γ²          the average: the model

    The parameters hold x, which is what to evaluate, average and export. Whoever computes the
    gradient does so at `gradient_point(parameter)`, a function of the stored x and z, so that
    nothing is lost by going back and forth.

    Arguments:
        params: the parameters, at their starting values.
        lr: γ, the learning rate; set it before every step for a warm-up.
        betas: β₁ (interpolation) and β₂ (second moment).
        eps: ε.
        weight_decay: λ.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "z": p.detach().clone(),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": 0,
                    "weight_sum": 0.0,
                }

    def gradient_point(self, parameter: Tensor) -> Tensor:
        """y: where the gradient of `parameter` is to be computed next."""
        beta = self.param_groups[0]["betas"][0]
        return parameter.detach().lerp(self.state[parameter]["z"], 1 - beta)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Moves z and x; every `.grad` holds the gradient at y."""
        for group in self.param_groups:
            lr, (_, beta2) = group["lr"], group["betas"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                state["step"] += 1
                state["weight_sum"] += lr**2
                v, z, y = state["exp_avg_sq"], state["z"], self.gradient_point(x)
                v.lerp_(x.grad.square(), 1 - beta2)
                scale = (v / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                z.sub_(x.grad / scale + group["weight_decay"] * y, alpha=lr)
                if state["weight_sum"] > 0:
                    x.lerp_(z, lr**2 / state["weight_sum"])
