"""Looks up names in real engines: prints those that DeepSpeed does not have, as JSON.

usage: private_names_worker.py STAGE:NAME …   STAGE names `ds_configs/zeroSTAGE.json`
"""

from __future__ import annotations

import json
import sys
from functools import reduce
from typing import Any

from torch import Tensor, nn

from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, fill_deepspeed, uses_cpu_adam
from lola_ds.distributed import leave_process_group
from lola_ds.train.optim import make_optimizer
from lola_ds.train.zero import Engine, join_process_group
from lola_ds.train.zero.extensions import import_deepspeed


class Objective(nn.Module):
    """The mean of a linear layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).mean()


def main() -> None:
    ranks = join_process_group("cpu")
    missing = []
    names = [word.split(":") for word in sys.argv[1:]]
    for stage in sorted({stage for stage, _ in names}):
        objects = make_objects(stage, ranks.world_size)
        for name in (name for where, name in names if where == stage):
            first, *attributes = name.split(".")
            try:
                reduce(getattr, attributes, objects[first])
            except AttributeError:
                missing.append(f"{stage}:{name}")
    print(json.dumps(missing))
    leave_process_group()


def make_objects(stage: str, world_size: int) -> dict[str, Any]:
    """The objects that names begin with, between a backward pass and its step."""
    config = compose(f"task=autoencoder run=r data=d deepspeed=zero{stage}".split())
    ds_config = fill_deepspeed(config, world_size)
    objective = Objective()
    optimizer = make_optimizer(
        objective.parameters(), config["optim"], on_cpu=uses_cpu_adam(ds_config)
    )
    engine = Engine(objective, optimizer, ds_config)
    engine.backward(engine(next(objective.parameters()).new_ones(2, 4)))
    return {
        "deepspeed": import_deepspeed(),
        "engine": engine._engine,
        "optimizer": engine._engine.optimizer,
        "parameter": next(objective.parameters()),
        "adam": optimizer,  # at 2_offload
        "cpu_adam": getattr(getattr(optimizer, "ds_opt_adam", None), "operator", None),
    }


if __name__ == "__main__":
    exit_at_once(main)
