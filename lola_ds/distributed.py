"""The process group: this process among its peers, sums and gathers over all ranks.

Every function works without a process group, too, as on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "Ranks",
    "first_difference",
    "gather_objects",
    "leave_process_group",
    "sum_over_ranks",
]


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place. Collective.

    Arguments:
        values: A tensor of the same shape on every rank.

    Returns:
        The same tensor.
    """
    if _world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Gathers a small object from every rank. Collective.

    Arguments:
        value: This rank's object, which must be picklable.

    Returns:
        The objects in the order of the ranks.
    """
    values = [value] * _world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def first_difference(module: nn.Module) -> str | None:
    """Finds the first float32 parameter whose bits differ between ranks. Collective.

    Arguments:
        module: A module with the same parameters on every rank.

    Returns:
        The parameter's name, or None if all ranks hold the same bits.
    """
    named = list(module.named_parameters())
    sums = [p.detach().view(torch.int32).sum(dtype=torch.int64) for _, p in named]
    extremes = torch.stack([*sums, *(-value for value in sums)])  # the largest, minus the smallest
    if _world_size() > 1:
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    differ = (extremes[: len(named)] + extremes[len(named) :]).tolist()
    return next((name for (name, _), value in zip(named, differ) if value), None)


def leave_process_group() -> None:
    """Leaves the process group, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
