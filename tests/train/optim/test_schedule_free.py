"""Schedule-free AdamW against its formulas, number by number in float64."""

from __future__ import annotations

import math

import torch
from torch import nn

from lola_ds.train.optim.schedule_free import ScheduleFreeAdamW

RATES = [0.01, 0.02, 0.03, 0.03, 0.03, 0.02]
BETA1, BETA2, EPS, DECAY = 0.8, 0.95, 1e-8, 0.1


def gradient(y: torch.Tensor, step: int) -> torch.Tensor:
    """Of a function that changes from step to step, so that all terms matter."""
    return 3 * y - 0.5 + torch.sin(7 * y + step)


def test_equals_the_formulas() -> None:
    start = torch.linspace(-1, 2, 7, dtype=torch.float64)
    p = nn.Parameter(start.clone())
    optimizer = ScheduleFreeAdamW([p], betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = gradient(optimizer.gradient_point(p), step)
        optimizer.step()

    for i, x in enumerate(start.tolist()):
        z, v, total = x, 0.0, 0.0
        for step, rate in enumerate(RATES):
            y = (1 - BETA1) * z + BETA1 * x
            g = 3 * y - 0.5 + math.sin(7 * y + step)
            v = BETA2 * v + (1 - BETA2) * g * g
            z -= rate * (g / (math.sqrt(v / (1 - BETA2 ** (step + 1))) + EPS) + DECAY * y)
            total += rate**2
            x = x + rate**2 / total * (z - x)
        torch.testing.assert_close(p[i].item(), x, rtol=1e-12, atol=1e-12)


def test_average_converges_where_the_iterates_keep_moving() -> None:
    """Noisy gradients of |w - 1|² / 2 at a constant rate: x comes closer than z."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(500))
    optimizer = ScheduleFreeAdamW([p], lr=0.05)
    for _ in range(400):
        noise = torch.randn(500, generator=generator)
        p.grad = optimizer.gradient_point(p) - 1 + noise
        optimizer.step()
    error = (p.detach() - 1).square().mean().sqrt()
    moving = (optimizer.state[p]["z"] - 1).square().mean().sqrt()
    assert error < 0.2
    assert error < 0.5 * moving


def test_no_rate_no_step() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeAdamW([p], lr=0.0)
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(p, torch.ones(3))
