"""Optimizers of whole tensors, their work and states shared among ranks.

ZeRO gives each rank a slice of every flattened parameter. Optimizers that look at whole matrices
need another split of the same work: every tensor belongs to one rank, which alone holds its
optimizer state and updates it; the result is broadcast. Gradients are averaged over ranks before
(and clipped, if they are), so ownership changes nothing but who computes.

Each tensor has an optimizer of its own, whose random numbers are a function of (seed, step,
position of the tensor). So the result depends neither on the rank that owns a tensor nor on what
else that rank owns, and all ranks hold the owner's bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lola_ds.distributed import sum_over_ranks
from lola_ds.hashing import hash64
from lola_ds.train.optim.rules import Rule
from lola_ds.train.optim.schedule_free import ScheduleFreeAdamW


@dataclass(frozen=True)
class Owned:
    """A tensor of this rank: its position among all, the parameter, and its optimizer."""

    position: int
    parameter: Tensor
    optimizer: torch.optim.Optimizer

    @property
    def leaf(self) -> Tensor:
        """The weights that the optimizer steps: those to evaluate, average and save."""
        return self.optimizer.param_groups[0]["params"][0]


class OwnerShardedOptimizer(torch.optim.Optimizer):
    """Steps every parameter on the rank that owns it, then broadcasts.

    Needs whole parameters and averaged gradients on every rank: DeepSpeed's stage 0.

    Arguments:
        parameters: all trainable parameters, in the same order on every rank.
        name: of the rule: checkpoints of another are refused.
        rule: makes the optimizer of one parameter.
        seed: of the optimizers' random numbers.
        rank: this rank.
        world_size: the number of ranks.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        name: str,
        rule: Rule,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.name = name
        self.parameters: list[Tensor] = self.param_groups[0]["params"]
        self.owners = share([cost(p.shape) for p in self.parameters], world_size)
        self.owned = [
            Owned(position, parameter, rule(parameter))
            for position, parameter in enumerate(self.parameters)
            if self.owners[position] == rank
        ]
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of every parameter that has a gradient. Collective."""
        for owned in self.owned:
            if owned.parameter.grad is None:
                continue
            for group in owned.optimizer.param_groups:
                group["lr"] = group["base_lr"] = self.param_groups[0]["lr"]
            owned.leaf.grad = owned.parameter.grad.reshape(owned.leaf.shape)
            with _seeded(hash64(self.seed, self.steps, owned.position), owned.leaf.device):
                owned.optimizer.step()
            owned.leaf.grad = None
        self.steps += 1
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Sets all parameters, on all ranks, to where the next gradient is taken. Collective."""
        for owned in self._apart():
            owned.parameter.copy_(owned.optimizer.gradient_point(owned.leaf))
        self._broadcast()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within, the parameters hold the weights to evaluate. Collective.

        They are the same as in training, except for optimizers that take gradients elsewhere.
        """
        apart = self._sum_over_ranks(len(self._apart())) > 0
        if not apart:
            yield
            return
        with torch.no_grad():
            for owned in self._apart():
                owned.parameter.copy_(owned.leaf)
            self._broadcast()
        yield
        self.publish()

    def state_tree(self, leaf: Tensor) -> dict[str, Any]:
        """All that the optimizer of one owned tensor remembers beside the tensor itself."""
        optimizer = self._optimizer_of(leaf)
        group = optimizer.param_groups[0]
        fixed = {*optimizer.defaults, *_SET_BY_STEP}
        return {
            "tensor": dict(optimizer.state.get(leaf, {})),
            "group": {k: v for k, v in group.items() if k not in fixed and k[0] != "_"},
            "schedule": dict(getattr(optimizer, "inner_group", {})),
        }

    def load_state_tree(self, leaf: Tensor, tree: dict[str, Any]) -> None:
        """Sets what `state_tree` gave. `publish` must follow when all tensors are loaded."""
        optimizer = self._optimizer_of(leaf)
        optimizer.state[leaf] = tree["tensor"]
        optimizer.param_groups[0].update(tree["group"])
        if tree["schedule"]:
            optimizer.inner_group = tree["schedule"]

    def _optimizer_of(self, leaf: Tensor) -> Any:
        return next(owned.optimizer for owned in self.owned if owned.leaf is leaf)

    def _apart(self) -> list[Any]:
        """The owned tensors whose gradient is taken at another point than the weights."""
        return [o for o in self.owned if isinstance(o.optimizer, ScheduleFreeAdamW)]

    def _sum_over_ranks(self, value: int) -> int:
        return int(sum_over_ranks(torch.tensor(value, device=self.parameters[0].device)))

    def _broadcast(self) -> None:
        """Copies every parameter from its owner, each owner's in one message."""
        if self.world_size == 1:
            return
        messages = []
        for rank in range(self.world_size):
            theirs = [p for p, owner in zip(self.parameters, self.owners) if owner == rank]
            if theirs:
                buffer = torch.cat([p.detach().reshape(-1) for p in theirs])
                messages.append((rank, theirs, buffer, dist.broadcast(buffer, rank, async_op=True)))
        for rank, theirs, buffer, work in messages:
            work.wait()
            if rank != self.rank:
                for p, part in zip(theirs, buffer.split([p.numel() for p in theirs])):
                    p.copy_(part.view(p.shape))


# Entries of a parameter group that every step sets anew.
_SET_BY_STEP = ("params", "lr", "base_lr", "prev_lr", "step")


def cost(shape: Sequence[int]) -> float:
    """The work of a step on one tensor, up to a factor: a product with a matrix along each axis."""
    return math.prod(shape) * (1 + sum(side for side in shape if side > 1))


def share(costs: Sequence[float], world_size: int) -> list[int]:
    """Assigns items to ranks: the most costly item first, each to the least loaded rank.

    The most loaded rank then has at most 4/3 of the least possible load (Graham, 1969).
    """
    load, owners = [0.0] * world_size, [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = min(range(world_size), key=load.__getitem__)
        load[rank] += costs[item]
        owners[item] = rank
    return owners


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generators within, and restores them after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
