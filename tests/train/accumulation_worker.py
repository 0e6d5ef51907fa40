"""Whether gradients add up in float32: prints the relative error of a step's gradient norm.

usage: accumulation_worker.py DEEPSPEED …   one line for each: 64 micro-batches in bfloat16, against
the same gradients added up in float64
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn

from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, fill_deepspeed, uses_cpu_adam
from lola_ds.distributed import leave_process_group
from lola_ds.train.optim import make_optimizer
from lola_ds.train.zero import Engine, join_process_group

MICRO, STEPS = 4, 64


class Regression(nn.Module):
    """A network under autocast with a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.model(x)
        return (y.float() - x.sin()).square().mean()


def main() -> None:
    ranks = join_process_group("cpu")
    data = torch.randn(STEPS, MICRO, 16, generator=torch.Generator().manual_seed(0))
    for name in sys.argv[1:]:
        words = f"task=autoencoder run=r data=d deepspeed={name} train.batch_size={MICRO * STEPS} "
        words += f"train.accumulation={STEPS} optim.grad_clip=0"
        config = compose(words.split())
        torch.manual_seed(0)
        module = Regression()
        expected = norm_in_float64(copy.deepcopy(module), data)
        ds_config = fill_deepspeed(config, ranks.world_size)
        optimizer = make_optimizer(
            module.parameters(), config["optim"], on_cpu=uses_cpu_adam(ds_config)
        )
        engine = Engine(module, optimizer, ds_config)
        for step, x in enumerate(data):
            engine.backward(engine(x))
            if step < STEPS - 1:
                engine.step()
        norm = engine.squared_norm().sqrt()
        print(name, abs(norm / expected - 1).item(), flush=True)
        engine.step()
    leave_process_group()


def norm_in_float64(module: nn.Module, data: Tensor) -> Tensor:
    """The norm of the averaged gradient, added up in float64."""
    parameters = list(module.parameters())
    totals = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for x in data:
        for total, gradient in zip(totals, torch.autograd.grad(module(x), parameters)):
            total += gradient / STEPS
    return torch.stack([total.square().sum() for total in totals]).sum().sqrt()


if __name__ == "__main__":
    exit_at_once(main)
