"""Which part of every parameter, and of its optimizer state, this rank owns.

ZeRO lays the float32 master weights out differently at every stage: whole parameters on every
rank (0), slices of flattened groups (1, 2), slices of each parameter (3); owner-sharded optimizers
give each parameter to one rank. From the view of a parameter, all of these are the same: a rank
holds a contiguous run `[start, start + numel)` of its flattened elements, a `Partition`. Moving
averages, checkpoints and export use partitions only, so they depend on neither the stage nor the
world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lola_ds.train.optim.owner_sharded import OwnerShardedOptimizer

__all__ = ["Partition", "find_partitions"]


@dataclass(frozen=True)
class Partition:
    """This rank's part of one parameter.

    Attributes:
        name: The parameter's name in the objective.
        shape: The whole parameter's shape.
        start: The first owned element, counted in the flattened parameter.
        numel: The number of owned elements.
        flat: The tensor that the optimizer steps; the key of its state.
        offset: Where the partition begins in `flat`, flattened.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    flat: Tensor
    offset: int

    @property
    def master(self) -> Tensor:
        """The float32 master weights of the partition: a view of shape (numel,)."""
        return self.view(self.flat)

    def view(self, tensor: Tensor) -> Tensor:
        """The partition's part of a tensor laid out like `flat`: a view of shape (numel,)."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def find_partitions(engine: Any, rank: int, world_size: int) -> list[Partition]:
    """Returns the partitions of the trainable parameters that belong to a rank, in module order.

    Arguments:
        engine: DeepSpeed's engine.
        rank: The rank; at stages 1 to 3 and for owner-sharded optimizers, this process's own.
        world_size: The number of ranks that share replicated parameters.
    """
    named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if isinstance(optimizer, OwnerShardedOptimizer):
        found = _owned(optimizer, named)
    elif stage == 0:
        found = _replicated(named, rank, world_size)
    elif stage == 3:
        found = _sliced(optimizer, named, rank)
    else:
        found = _grouped(optimizer, named)
    return list(found)


def _owned(optimizer: OwnerShardedOptimizer, named: list[tuple[str, Any]]) -> Iterator[Partition]:
    leaves = {id(owned.parameter): owned.leaf for owned in optimizer.owned}
    for name, parameter in named:
        if (leaf := leaves.get(id(parameter))) is not None:
            yield Partition(name, tuple(parameter.shape), 0, leaf.numel(), leaf, 0)


def _replicated(named: list[tuple[str, Any]], rank: int, world_size: int) -> Iterator[Partition]:
    """Divides every parameter evenly among the ranks."""
    for name, parameter in named:
        size = parameter.numel()
        share = -(-size // world_size)
        start = min(size, rank * share)
        numel = min(size, start + share) - start
        if numel:
            yield Partition(name, tuple(parameter.shape), start, numel, parameter, start)


def _grouped(zero: Any, named: list[tuple[str, Any]]) -> Iterator[Partition]:
    """The slices of flattened groups of stages 1 and 2."""
    groups = zero.single_partition_of_fp32_groups
    for name, parameter in named:
        hp_mapping = parameter._hp_mapping  # None if all of the parameter lies on other ranks
        if hp_mapping is not None:
            local, master = hp_mapping.lp_fragment_address, hp_mapping.hp_fragment_address
            flat = groups[hp_mapping.param_group_index]
            shape = tuple(parameter.shape)
            yield Partition(name, shape, local.start, local.numel, flat, master.start)


def _sliced(zero: Any, named: list[tuple[str, Any]], rank: int) -> Iterator[Partition]:
    """The slices of each parameter of stage 3."""
    for name, parameter in named:
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        share = parameter.ds_tensor.ds_numel  # equal on all ranks, padded on the last ones
        start = min(parameter.ds_numel, rank * share)
        numel = min(parameter.ds_numel, start + share) - start
        if numel:
            flat = zero.fp32_partitioned_groups_flat[group]
            yield Partition(name, tuple(parameter.ds_shape), start, numel, flat, offset)
