r"""The memory of one rank at every ZeRO stage.

The pass of the network is traced (`pass_cost.py`). What DeepSpeed adds is counted here, in bytes
per rank for N float32 parameters on W ranks, with the shard s = 4 N / W and K moving averages:

| stage | resident | forward and backward | optimizer step |
|---|---|---|---|
| 0 | weights 4 N, Adam 8 N, averages K s | activations, gradients and a flat copy of these | 4 N |
| 1 | weights 4 N, master s, Adam 2 s, averages K s | as stage 0, and buckets | gradients 2 s |
| 2 | weights 4 N, master s, Adam 2 s, averages K s | activations, buckets | gradients 2 s |
| 3 | weights, master, gradients, Adam 5 s, averages K s, bucket | activations, weights | s |

With more than one rank, a second bucket is sent while the next one is filled. Gradient accumulation
keeps the gradients of earlier micro-batches: 4 N at stages 0 and 1, s at stage 2.

Offloading the optimizer moves master weights, gradients, Adam and averages, (4 + K) s, to the host,
where DeepSpeed keeps one more s: the weights that are copied back at stages 1 and 2, a second copy
of the gradients at stage 3. At stage 3, offloading the parameters moves their s, too. With NVMe
offload, the host holds master weights and moments of three sub-groups only: one that is read, one
that is stepped and one that is written.

Ranks that share the tokens of a sample (sequence parallelism) count as W ranks for ZeRO.

References:
    | ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
    | (Rajbhandari et al., 2020)
    | https://arxiv.org/abs/1910.02054
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lola_ds.estimate.workload import Workload
from lola_ds.hardware import GIB
from lola_ds.train.zero.nvme_offload import nvme_bytes

__all__ = ["MemoryEstimate", "estimate_memory", "offloads"]

CONTEXT_BYTES = int(1.5 * GIB)
"""The bytes that CUDA, cuBLAS and NCCL allocate beside torch."""

FLATTENED_ELEMENTS = 500_000_000
"""The elements of gradients that DeepSpeed flattens at once at stage 0, whatever its file says."""

FRAGMENTATION = 1.05
"""The ratio of what torch's allocator reserves to what is allocated."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of one rank.

    Attributes:
        resident: The bytes that are on the GPU at all times.
        activation_peak: The most bytes that the forward and backward passes add.
        optimizer_peak: The most bytes that the optimizer step adds.
        host: The bytes that are offloaded to host memory.
        nvme: The bytes that are offloaded to NVMe.
    """

    resident: int
    activation_peak: int
    optimizer_peak: int
    host: int = 0
    nvme: int = 0

    @property
    def peak(self) -> int:
        """The most bytes that are allocated at any time."""
        return self.resident + max(self.activation_peak, self.optimizer_peak)

    @property
    def on_gpu(self) -> int:
        """The peak, with what CUDA, the communication library and fragmentation add."""
        return int(FRAGMENTATION * self.peak) + CONTEXT_BYTES


def offloads(zero: Mapping[str, Any], what: str) -> bool:
    """Whether a `zero_optimization` section offloads `what` (`optimizer` or `param`)."""
    return zero.get(f"offload_{what}", {"device": "none"})["device"] != "none"


def estimate_memory(
    workload: Workload,
    *,
    micro_batch: int,
    zero: Mapping[str, Any],
    world_size: int,
    accumulation: int = 1,
    averages: int = 1,
) -> MemoryEstimate:
    """Estimates the memory of one rank; see the table above.

    Arguments:
        workload: The network under one checkpointing policy.
        micro_batch: The samples per rank and pass.
        zero: The `zero_optimization` section of a complete DeepSpeed configuration.
        world_size: The number of ranks W.
        accumulation: The number of micro-batches per step.
        averages: The number K of moving averages.
    """
    states = _States(workload, micro_batch, zero, world_size, accumulation > 1, averages)
    by_stage = {0: _stage_0, 1: _stage_1, 2: _stage_2, 3: _stage_3}
    return by_stage[zero["stage"]](states)


@dataclass(frozen=True)
class _States:
    """The sizes in bytes from which the memory of every stage is composed."""

    workload: Workload
    micro_batch: int
    zero: Mapping[str, Any]
    world_size: int
    accumulates: bool
    averages: int

    @property
    def weights(self) -> int:
        return 4 * self.workload.parameters

    @property
    def shard(self) -> int:
        return -(-self.weights // self.world_size)

    @property
    def bucket(self) -> int:
        return 4 * self.zero["reduce_bucket_size"]

    @property
    def activations(self) -> int:
        return self.workload.activations(self.micro_batch)

    @property
    def pass_with_all_gradients(self) -> int:
        """The peak of a pass that keeps all gradients, and those of earlier micro-batches."""
        earlier = self.activations + self.weights if self.accumulates else 0
        return max(self.workload.with_gradients(self.micro_batch), earlier)


def _stage_0(states: _States) -> MemoryEstimate:
    flattened = min(states.weights, 4 * FLATTENED_ELEMENTS)
    return MemoryEstimate(
        resident=3 * states.weights + states.averages * states.shard,
        activation_peak=max(states.pass_with_all_gradients, states.weights + flattened),
        optimizer_peak=states.weights,
    )


def _stage_1(states: _States) -> MemoryEstimate:
    peak = max(states.pass_with_all_gradients, states.weights + states.shard)
    return _partitioned_optimizer(states, pass_peak=peak, accumulated=0)


def _stage_2(states: _States) -> MemoryEstimate:
    accumulated = states.shard if states.accumulates else 0
    return _partitioned_optimizer(states, pass_peak=states.activations, accumulated=accumulated)


def _partitioned_optimizer(states: _States, *, pass_peak: int, accumulated: int) -> MemoryEstimate:
    """Stages 1 and 2, which partition the optimizer but not the weights."""
    buckets = 2 if states.zero["overlap_comm"] or states.world_size > 1 else 1
    peak = pass_peak + buckets * states.bucket
    if offloads(states.zero, "optimizer"):
        return MemoryEstimate(
            resident=states.weights,
            activation_peak=peak,
            optimizer_peak=states.shard,
            host=(5 + states.averages) * states.shard + accumulated,
        )
    return MemoryEstimate(
        resident=states.weights + (3 + states.averages) * states.shard,
        activation_peak=peak + accumulated,
        optimizer_peak=2 * states.shard + accumulated,
    )


def _stage_3(states: _States) -> MemoryEstimate:
    zero, shard = states.zero, states.shard
    optimizer = (4 + states.averages) * shard if offloads(zero, "optimizer") else 0
    offloaded = optimizer + (shard if offloads(zero, "param") else 0)
    host = offloaded + shard if optimizer else offloaded
    nvme = nvme_bytes(states.workload.parameters, zero, states.world_size, states.averages)
    if nvme:
        host = offloaded - nvme + 3 * min(shard, 3 * 4 * zero["sub_group_size"])
    return MemoryEstimate(
        resident=(5 + states.averages) * shard + states.bucket - offloaded,
        activation_peak=states.activations + _gathered_weights(states),
        optimizer_peak=shard,
        host=host,
        nvme=nvme,
    )


def _gathered_weights(states: _States) -> int:
    """The weights that stage 3 gathers from other ranks, and the buffer that it gathers through."""
    if states.world_size == 1:
        return 0
    live = min(states.weights, 4 * states.zero["stage3_max_live_parameters"])
    buffer = max(states.bucket, 4 * states.zero["stage3_prefetch_bucket_size"])
    return live + min(states.weights, buffer)
