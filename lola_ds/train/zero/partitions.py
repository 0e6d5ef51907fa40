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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lola_ds.train.optim.owner_sharded import WholeTensorOptimizer


@dataclass(frozen=True)
class Partition:
    """This rank's part of one parameter.

    Attributes:
        name: the parameter's name in the objective.
        shape: the whole parameter's shape.
        start: the first owned element, counted in the flattened parameter.
        numel: the number of owned elements.
        flat: the tensor that the optimizer steps; the key of its state.
        offset: where the partition begins in `flat`, flattened.
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


@contextmanager
def evaluated(engine: Any) -> Iterator[None]:
    """Within, the module holds the weights to evaluate, if they are not those trained at."""
    if isinstance(engine.optimizer, WholeTensorOptimizer):
        with engine.optimizer.evaluated():
            yield
    else:
        yield


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a DeepSpeed engine, whatever the stage."""
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def local_partitions(engine: Any, rank: int, world_size: int) -> list[Partition]:
    """The partitions of the trainable parameters that `rank` owns, in the order of the module.

    At stage 0 every rank holds everything; each then answers for an equal share of every parameter,
    or for the parameters whose optimizer state it alone holds.
    """
    if isinstance(engine.optimizer, WholeTensorOptimizer):
        find = _owned
    else:
        stage = engine.zero_optimization_stage()
        find = {0: _replicated, 1: _grouped, 2: _grouped, 3: _sliced}[stage]
    named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    return list(find(engine, named, rank, world_size))


def resident_partitions(engine: Any, rank: int, world_size: int) -> list[Partition]:
    """The partitions whose optimizer state lies on `rank`: its own, or all that are replicated."""
    whole = isinstance(engine.optimizer, WholeTensorOptimizer)
    if engine.zero_optimization_stage() == 0 and not whole:
        return local_partitions(engine, 0, 1)
    return local_partitions(engine, rank, world_size)


def _owned(
    engine: Any, named: list[tuple[str, Any]], rank: int, world_size: int
) -> Iterator[Partition]:
    leaves = {id(owned.parameter): owned.leaf for owned in engine.optimizer.owned}
    for name, parameter in named:
        if (leaf := leaves.get(id(parameter))) is not None:
            yield Partition(name, tuple(parameter.shape), 0, leaf.numel(), leaf, 0)


def _replicated(
    engine: Any, named: list[tuple[str, Any]], rank: int, world_size: int
) -> Iterator[Partition]:
    for name, parameter in named:
        size = parameter.numel()
        share = -(-size // world_size)
        start = min(size, rank * share)
        numel = min(size, start + share) - start
        if numel:
            yield Partition(name, tuple(parameter.shape), start, numel, parameter, start)


def _grouped(
    engine: Any, named: list[tuple[str, Any]], rank: int, world_size: int
) -> Iterator[Partition]:
    groups = engine.optimizer.single_partition_of_fp32_groups
    for name, parameter in named:
        mapping = parameter._hp_mapping  # None: all of this parameter lies on other ranks
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = groups[mapping.param_group_index]
            yield Partition(name, tuple(parameter.shape), here.start, here.numel, flat, there.start)


def _sliced(
    engine: Any, named: list[tuple[str, Any]], rank: int, world_size: int
) -> Iterator[Partition]:
    zero = engine.optimizer
    for name, parameter in named:
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        share = parameter.ds_tensor.ds_numel  # equal on all ranks, padded on the last ones
        start = min(parameter.ds_numel, rank * share)
        numel = min(parameter.ds_numel, start + share) - start
        if numel:
            flat = zero.fp32_partitioned_groups_flat[group]
            yield Partition(name, tuple(parameter.ds_shape), start, numel, flat, offset)
