"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lola_ds.train.optim.owner_sharded import OwnerShardedOptimizer
from lola_ds.train.optim.rules import adamw, make_rule
from lola_ds.train.optim.schedules import SCHEDULES, make_schedule
from lola_ds.train.zero.cpu_adam import deepspeed_cpu_adam

__all__ = ["SCHEDULES", "OwnerShardedOptimizer", "make_optimizer", "make_schedule"]


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    config: dict[str, Any],
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_cpu: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer of the `optim` group: AdamW for any ZeRO stage, else one of whole tensors.

    The learning rate starts at 0: the loop sets it before every step.

    Arguments:
        parameters: the trainable parameters, in the same order on every rank.
        config: the `optim` group.
        seed: of the optimizer's random numbers (PSGD fits its preconditioner by noise).
        rank: this rank.
        world_size: the number of ranks.
        on_cpu: take DeepSpeed's AdamW for offloaded weights (`config.uses_cpu_adam`).

    Raises:
        ValueError: DeepSpeed's AdamW was asked for and cannot be compiled here.
    """
    name = config["optimizer"]
    if name == "adamw":
        return (deepspeed_cpu_adam if on_cpu else adamw)(config, parameters)
    return OwnerShardedOptimizer(
        parameters, name, make_rule(config), seed=seed, rank=rank, world_size=world_size
    )
