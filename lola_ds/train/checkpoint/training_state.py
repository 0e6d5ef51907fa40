"""The state of a training: what a checkpoint holds of it, and how it is restored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.train.checkpoint.format import (
    AVERAGES,
    AVERAGES_FILE,
    OPTIMIZER,
    PARTITIONS,
    STATES,
    CheckpointError,
    CheckpointReader,
    explain_mismatch,
    state_key,
)
from lola_ds.train.checkpoint.packing import pack
from lola_ds.train.ema import Ema
from lola_ds.train.optim import OwnerShardedOptimizer
from lola_ds.train.zero.nvme_offload import NvmeStore
from lola_ds.train.zero.partitions import Partition

__all__ = [
    "Content",
    "load_weights",
    "rank_contents",
    "restore_ema",
    "restore_optimizer",
]


def load_weights(module: nn.Module, reader: CheckpointReader, kind: str = "weight") -> None:
    """Copies parameters and buffers into a module.

    Arguments:
        module: The objective.
        reader: The checkpoint.
        kind: `weight`, or the kind of an average.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    expected = {n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad}
    explain_mismatch(str(reader.folder), reader.shapes, expected)
    state = dict(reader.tensors(kind)) | dict(reader.buffers())
    module.load_state_dict(state, strict=False)


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    partitions: Sequence[Partition],
    reader: CheckpointReader,
    step: int,
    nvme: NvmeStore | None = None,
) -> None:
    """Sets the optimizer's state and step count from a checkpoint.

    Arguments:
        optimizer: The torch optimizer of the engine.
        partitions: The partitions whose state lies on this rank (`resident_partitions`).
        reader: The checkpoint.
        step: The number of optimizer steps done.
        nvme: The store of offloaded states, if any.

    Raises:
        CheckpointError: The checkpoint is of another optimizer.
    """
    if reader.optimizer != _optimizer_name(optimizer):
        raise CheckpointError(
            f"{reader.folder} was written with optim={reader.optimizer}, not "
            f"{_optimizer_name(optimizer)}; go on with optim={reader.optimizer}, or start a new "
            "run from these weights with fork.run=…"
        )
    if isinstance(optimizer, OwnerShardedOptimizer):
        for f in partitions:
            optimizer.load_state_tree(f.flat, reader.optimizer_state(f.name, f.flat.device))
        optimizer.steps = step
        optimizer.publish()
        return
    kinds = reader.moments
    for flat in {id(f.flat): f.flat for f in partitions}.values():
        state = optimizer.state[flat]
        state["step"] = torch.tensor(float(step), device=flat.device if flat.is_cuda else "cpu")
        for kind in kinds:
            state[kind] = torch.zeros_like(flat) if nvme is None else nvme.zeros_like(flat)
    for partition in partitions:
        for kind in kinds:
            value = reader.read(kind, partition.name, partition.start, partition.numel)
            partition.view(optimizer.state[partition.flat][kind]).copy_(value)


@torch.no_grad()
def restore_ema(ema: Ema, reader: CheckpointReader) -> None:
    """Sets this rank's part of the averages from a checkpoint.

    Raises:
        CheckpointError: An average is not in the checkpoint.
    """
    for profile, values in zip(ema.profiles, ema.values):
        if profile.kind not in reader.averages:
            raise CheckpointError(
                f"{reader.folder} holds the averages {', '.join(reader.averages)}, not "
                f"{profile.kind}; go on with the ema.decay and ema.power_law of its run, or start "
                "a new run from these weights with fork.run=…"
            )
        for f, value in zip(ema.partitions, values):
            value.copy_(reader.read(profile.kind, f.name, f.start, f.numel))


@dataclass(frozen=True)
class Content:
    """The content of a file: tensors, which are not copied, and the metadata of its header."""

    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]


def rank_contents(
    module: nn.Module,
    partitions: Sequence[Partition],
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    rank: int,
) -> dict[str, Content]:
    """Returns the contents of a rank's files by name.

    Arguments:
        module: The objective.
        partitions: This rank's partitions.
        optimizer: The torch optimizer of the engine.
        ema: The averages of the same partitions.
        rank: This rank. The first one also saves the buffers.
    """
    runs = {PARTITIONS: json.dumps({f.name: (f.shape, f.start, f.numel) for f in partitions})}
    tensors = {f"weight/{f.name}": f.master for f in partitions}
    states: dict[str, Any] = {}
    if isinstance(optimizer, OwnerShardedOptimizer):
        for f in partitions:
            structure, parts = pack(optimizer.state_tree(f.flat))
            states[f.name] = structure, len(parts)
            tensors |= {state_key(f.name, i): part for i, part in enumerate(parts)}
    else:
        tensors |= {
            f"{kind}/{f.name}": f.view(value)
            for f in partitions
            for kind, value in optimizer.state[f.flat].items()
            if isinstance(value, Tensor) and kind != "step" and value.shape == f.flat.shape
        }
    if rank == 0:
        tensors |= {f"buffer/{name}": buffer for name, buffer in _buffers(module)}
    metadata = {OPTIMIZER: json.dumps(_optimizer_name(optimizer)), STATES: json.dumps(states)}
    averages = {
        f"{profile.kind}/{f.name}": value
        for profile, values in zip(ema.profiles, ema.values)
        for f, value in zip(ema.partitions, values)
    }
    kinds = {AVERAGES: json.dumps([profile.kind for profile in ema.profiles])}
    return {
        f"rank_{rank:05d}.safetensors": Content(tensors, runs | metadata),
        f"{AVERAGES_FILE}_{rank:05d}.safetensors": Content(averages, runs | kinds),
    }


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    if isinstance(optimizer, OwnerShardedOptimizer):
        return optimizer.name
    return "adamw"  # torch's or DeepSpeed's: their states are the same


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)
