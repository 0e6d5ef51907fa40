"""Which setting to train with: traffic and time of a step, and the search over all settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lola_ds.estimate.memory import MemoryEstimate, estimate_memory, offloads
from lola_ds.estimate.workload import Workload
from lola_ds.hardware import GIB, Gpu
from lola_ds.train.zero.nvme_offload import nvme_bytes

__all__ = ["Setting", "SettingSearch", "zero_comm_bytes"]

HOST_BANDWIDTH = 20e9
"""Bytes per second and GPU of copies to and from the host, and of host memory. Not measured."""

NVME_BANDWIDTH = 1.5e9
"""Bytes per second and GPU of reads or writes of a local NVMe. Not measured."""


def zero_comm_bytes(parameters: int, stage: int, world_size: int, accumulation: int) -> float:
    """The bytes that ZeRO sends per rank and step, by ring algorithms.

    An all-reduce sends 2 · 4 N (W - 1) / W bytes, a reduce-scatter or an all-gather half of that.
    Stages 0 and 1 reduce gradients once a step, stage 2 after every micro-batch. Stage 3 also
    gathers the weights for every forward and every backward pass.

    Arguments:
        parameters: The number N of float32 parameters.
        stage: The ZeRO stage.
        world_size: The number of ranks W.
        accumulation: The number of micro-batches per step.
    """
    half_reductions = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[stage]
    return half_reductions * 4 * parameters * (world_size - 1) / world_size


@dataclass(frozen=True)
class Setting:
    """A way to take one optimizer step, and what it needs.

    Attributes:
        policy: The checkpointing policy.
        deepspeed: The option of the group `deepspeed`: a ZeRO stage, with offload or without.
        world_size: The number of GPUs.
        micro_batch: The samples per GPU and pass.
        accumulation: The passes per step.
        memory: The memory of one rank.
        comm_bytes: The bytes that each rank sends per step.
        seconds: The time of a step.
    """

    policy: str
    deepspeed: str
    world_size: int
    micro_batch: int
    accumulation: int
    memory: MemoryEstimate
    comm_bytes: float
    seconds: float

    def overrides(self, group: str) -> str:
        """The overrides of `lola-ds train` that choose it; `group` is the network's."""
        return (
            f"deepspeed={self.deepspeed} train.accumulation={self.accumulation} "
            f"{group}.checkpointing={self.policy}"
        )


@dataclass(frozen=True)
class SettingSearch:
    """Compares ZeRO stages and checkpointing policies for one training on one kind of GPU.

    Attributes:
        workloads: The network under each checkpointing policy.
        stages: The `zero_optimization` section of each option of the group `deepspeed`.
        batch_size: The samples per optimizer step.
        gpu: The GPU.
        network: The bandwidth between nodes, in GB/s per GPU.
        sequence: The number of GPUs that share the tokens of a sample, all on one node.
        averages: The number of moving averages of the weights.
    """

    workloads: Sequence[Workload]
    stages: Mapping[str, Mapping[str, Any]]
    batch_size: int
    gpu: Gpu
    network: float
    sequence: int = 1
    averages: int = 1

    def memory(
        self,
        workload: Workload,
        stage: str,
        *,
        world_size: int,
        micro_batch: int,
        accumulation: int = 1,
    ) -> MemoryEstimate:
        """The memory of one rank with this setting."""
        return estimate_memory(
            workload,
            micro_batch=micro_batch,
            zero=self.stages[stage],
            world_size=world_size,
            accumulation=accumulation,
            averages=self.averages,
        )

    def largest_micro_batch(self, workload: Workload, stage: str, world_size: int) -> int:
        """The largest micro-batch that fits, whatever the batch size; 0 if none does."""

        def fits(micro_batch: int) -> bool:
            return self._fits(workload, stage, world_size=world_size, micro_batch=micro_batch)

        low, high = 0, 1
        while fits(high) and high < 2**20:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def settings(self, world_size: int) -> Iterator[Setting]:
        """For every stage and policy, the step of `batch_size` samples in the fewest passes."""
        groups = world_size // self.sequence
        if world_size % self.sequence or self.batch_size % groups:
            return
        share = self.batch_size // groups
        for stage in self.stages:
            for workload in self.workloads:
                for passes in (n for n in range(1, share + 1) if share % n == 0):
                    split = {"micro_batch": share // passes, "accumulation": passes}
                    if self._fits(workload, stage, world_size=world_size, **split):
                        yield self._setting(workload, stage, world_size=world_size, **split)
                        break

    def best(self, world_size: int) -> Setting | None:
        """The quickest setting; among those within 2 % of it, the one with the least memory."""
        settings = list(self.settings(world_size))
        if not settings:
            return None
        quickest = min(setting.seconds for setting in settings)
        close = (setting for setting in settings if setting.seconds <= 1.02 * quickest)
        return min(close, key=lambda setting: setting.memory.peak)

    def _fits(self, workload: Workload, stage: str, **setting: int) -> bool:
        return self.memory(workload, stage, **setting).on_gpu <= self.gpu.memory * GIB

    def _setting(
        self,
        workload: Workload,
        stage: str,
        *,
        world_size: int,
        micro_batch: int,
        accumulation: int,
    ) -> Setting:
        n, gpu, zero = workload.parameters, self.gpu, self.stages[stage]
        sent = zero_comm_bytes(n, zero["stage"], world_size, accumulation)
        link = gpu.link if world_size <= gpu.per_node else min(gpu.link, self.network)
        computing = accumulation * workload.seconds(micro_batch, gpu)
        if offloads(zero, "param"):  # copied to the GPU for the forward and the backward pass
            nvme = zero["offload_param"]["device"] == "nvme"
            bandwidth = NVME_BANDWIDTH if nvme else HOST_BANDWIDTH
            computing += accumulation * 2 * 4 * n / world_size / bandwidth
        communicating = sent / (link * 1e9)
        if zero.get("overlap_comm"):  # hidden behind the backward pass
            communicating = max(0.0, communicating - 2 / 3 * computing)
        return Setting(
            policy=workload.policy,
            deepspeed=stage,
            world_size=world_size,
            micro_batch=micro_batch,
            accumulation=accumulation,
            memory=self.memory(
                workload,
                stage,
                world_size=world_size,
                micro_batch=micro_batch,
                accumulation=accumulation,
            ),
            comm_bytes=sent + accumulation * workload.comm_bytes(micro_batch),
            seconds=computing + communicating + self._update_seconds(n, zero, world_size),
        )

    def _update_seconds(self, parameters: int, zero: Mapping[str, Any], world_size: int) -> float:
        """The time of AdamW (4 reads, 3 writes) and the averages (2 reads, 1 write).

        Both are bound by memory. With host offload, gradients are copied to the host before and
        weights to the GPU after. With NVMe offload, master weights and moments are read and
        written, and the master weights once more for the averages.
        """
        shard = 4 * parameters / world_size
        updated = 4 * parameters if zero["stage"] == 0 else shard
        touched = 7 * updated + 3 * self.averages * shard
        if nvme_bytes(parameters, zero, world_size, self.averages):
            return (7 + 2 * self.averages) * shard / NVME_BANDWIDTH
        if offloads(zero, "optimizer"):
            return (touched + 2 * shard) / HOST_BANDWIDTH
        return touched / (self.gpu.bandwidth * 1e9)
