"""What a training will need, before it starts: memory, traffic, time; and which setting to choose.

The cost of a forward and backward pass is traced (`cost.py`); what DeepSpeed adds is counted here,
in bytes per rank for N float32 parameters on W ranks, with s = 4 N / W (Rajbhandari et al., 2020,
https://arxiv.org/abs/1910.02054, and DeepSpeed's sources for the buffers):

| stage | always there | forward and backward | optimizer step |
|---|---|---|---|
| 0 | weights 4 N, Adam 8 N, average s | activations and gradients, a bucket | gradients 4 N |
| 1, 2 | weights 4 N, master s, Adam 2 s, average s | activations, a bucket | gradients 2 s |
| 3 | weights, master, gradients, Adam and average 6 s, a bucket | activations, weights | s |

Between ranks, a second bucket is still being sent while the next one is filled.
Accumulating several micro-batches keeps the gradients in between: 4 N at stages 0 and 1, s at 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cost import PassCost

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU, and the node it sits in.

    Attributes:
        memory: GiB that a process can allocate.
        half: TFLOP/s of dense bfloat16 matrix products.
        single: TFLOP/s of float32 matrix products, TF32 off.
        bandwidth: GB/s of reading and writing memory.
        link: GB/s per GPU, each way, to the others of the node.
        per_node: GPUs of a node.
    """

    memory: float
    half: float
    single: float
    bandwidth: float
    link: float
    per_node: int


# Rates that large kernels reach: measured for the H100, else 0.8 of the vendor's data sheet.
GPUS = {
    "a100-40": Gpu(39, 250, 16, 1250, 240, 8),
    "a100-80": Gpu(79, 250, 16, 1600, 240, 8),
    "h100": Gpu(79, 790, 54, 3000, 360, 8),
    "h200": Gpu(140, 790, 54, 3800, 360, 8),
    "l40s": Gpu(44, 290, 73, 690, 25, 8),
    "rtx4090": Gpu(23, 130, 66, 800, 20, 4),
}
NETWORKS = {"ndr400": 45.0, "hdr200": 22.0, "edr100": 11.0, "ethernet100": 1.4, "ethernet25": 0.35}
"""GB/s per GPU between nodes: a port for each GPU, or one Ethernet port for a node of eight."""

LAUNCH_SECONDS = 4e-6
"""The least that a kernel takes from Python, asynchronously."""

CONTEXT_BYTES = int(1.5 * GIB)
"""What CUDA, cuBLAS and NCCL allocate beside torch."""

FRAGMENTATION = 1.05
"""What torch's allocator reserves over what is allocated."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: what is always there, and the most in either half of a step."""

    resident: int
    passing: int
    stepping: int

    @property
    def peak(self) -> int:
        """The most that is allocated at any time."""
        return self.resident + max(self.passing, self.stepping)

    @property
    def on_gpu(self) -> int:
        """The peak with what CUDA, the communication library and fragmentation add."""
        return int(FRAGMENTATION * self.peak) + CONTEXT_BYTES


@dataclass(frozen=True)
class Workload:
    """A network under one checkpointing policy; costs are linear in the micro-batch.

    Attributes:
        policy: the checkpointing policy.
        low: the cost of a small micro-batch.
        high: the cost of a larger one.
    """

    policy: str
    low: PassCost
    high: PassCost

    @property
    def parameters(self) -> int:
        """Trainable parameters N."""
        return self.low.parameters

    @property
    def flops(self) -> float:
        """Floating-point operations per sample."""
        return (self.high.flops - self.low.flops) / (self.high.samples - self.low.samples)

    @property
    def sample_bytes(self) -> float:
        """Bytes of activations per sample."""
        return self.activations(1) - self.activations(0)

    def activations(self, samples: int) -> int:
        """Peak bytes when gradients are taken away at once."""
        return round(self._line(samples, self.low.activations, self.high.activations))

    def with_gradients(self, samples: int) -> int:
        """Peak bytes when gradients stay."""
        return round(self._line(samples, self.low.with_gradients, self.high.with_gradients))

    def seconds(self, samples: int, gpu: Gpu) -> float:
        """Time of a forward and backward pass on `gpu`."""
        return self._line(samples, pass_seconds(self.low, gpu), pass_seconds(self.high, gpu))

    def _line(self, samples: int, low: float, high: float) -> float:
        slope = (high - low) / (self.high.samples - self.low.samples)
        return low + slope * (samples - self.low.samples)


def pass_seconds(cost: PassCost, gpu: Gpu) -> float:
    """Every kernel bound by its arithmetic, its traffic or its launch, whichever takes longest."""
    rates = {True: gpu.half * 1e12, False: gpu.single * 1e12}
    return sum(
        max(k.flops / rates[k.half], k.bytes / (gpu.bandwidth * 1e9), LAUNCH_SECONDS)
        for k in cost.kernels
    )


def zero_memory(
    workload: Workload,
    samples: int,
    zero: Mapping[str, Any],
    world_size: int,
    accumulation: int = 1,
) -> Memory:
    """Memory of one rank; see the table above.

    Arguments:
        workload: the network.
        samples: the micro-batch.
        zero: the `zero_optimization` section of a DeepSpeed configuration.
        world_size: the number of ranks W.
        accumulation: micro-batches per step.
    """
    whole = 4 * workload.parameters
    share = -(-whole // world_size)
    bucket = 4 * zero.get("reduce_bucket_size", 500_000_000)
    several = accumulation > 1
    if zero["stage"] == 0:
        flattened = min(whole, bucket) if world_size > 1 else 0
        accumulating = workload.activations(samples) + whole if several else 0
        passing = max(workload.with_gradients(samples), accumulating, whole + flattened)
        return Memory(3 * whole + share, passing, whole)
    if zero["stage"] in (1, 2):
        filled_and_sent = 2 if zero["overlap_comm"] or world_size > 1 else 1
        buffers = bucket * filled_and_sent
        kept = (whole if zero["stage"] == 1 else share) if several else 0
        return Memory(
            resident=whole + 4 * share,
            passing=workload.activations(samples) + buffers + kept,
            stepping=2 * share + kept,
        )
    gathered = 0
    if world_size > 1:
        live = min(whole, 4 * zero["stage3_max_live_parameters"])
        flattened = max(bucket, 4 * zero["stage3_prefetch_bucket_size"])
        gathered = live + min(whole, flattened)
    return Memory(6 * share + bucket, workload.activations(samples) + gathered, share)


def traffic(parameters: int, stage: int, world_size: int, accumulation: int) -> float:
    """Bytes that each rank sends in a step, by rings.

    An all-reduce sends 2 · 4 N (W - 1) / W bytes; reduce-scatter and all-gather half of it each.
    Stages 0 and 1 reduce once a step, stage 2 after every micro-batch; stage 3 also gathers the
    weights for every forward and every backward pass.
    """
    turns = {
        0: 2,
        1: 2,
        2: accumulation + 1,
        3: 3 * accumulation,
    }[stage]
    return turns * 4 * parameters * (world_size - 1) / world_size


def update_seconds(parameters: int, stage: int, world_size: int, gpu: Gpu) -> float:
    """Time of AdamW (4 reads, 3 writes) and the average (2 reads, 1 write), bound by memory."""
    stepped = parameters if stage == 0 else parameters / world_size
    return 4 * (7 * stepped + 3 * parameters / world_size) / (gpu.bandwidth * 1e9)


@dataclass(frozen=True)
class Choice:
    """A way to take one optimizer step, and what it needs.

    Attributes:
        policy: the checkpointing policy.
        stage: the ZeRO stage.
        world_size: the number of GPUs.
        micro_batch: samples per GPU and pass.
        accumulation: passes per step.
        memory: of one rank.
        traffic: bytes each rank sends.
        seconds: time of a step.
    """

    policy: str
    stage: int
    world_size: int
    micro_batch: int
    accumulation: int
    memory: Memory
    traffic: float
    seconds: float


@dataclass(frozen=True)
class Planner:
    """Weighs stages and policies for one training on one kind of GPU.

    Attributes:
        workloads: the network under each checkpointing policy.
        stages: the `zero_optimization` section of each stage.
        batch_size: samples per optimizer step.
        gpu: the GPU.
        network: GB/s per GPU between nodes.
    """

    workloads: Sequence[Workload]
    stages: Mapping[int, Mapping[str, Any]]
    batch_size: int
    gpu: Gpu
    network: float

    def memory(
        self, workload: Workload, stage: int, world_size: int, micro: int, accumulation: int = 1
    ) -> Memory:
        """Memory of one rank at this setting."""
        return zero_memory(workload, micro, self.stages[stage], world_size, accumulation)

    def largest(self, workload: Workload, stage: int, world_size: int) -> int:
        """The largest micro-batch that fits, whatever the batch size; 0 if none does."""
        low, high = 0, 1
        while self._fits(workload, stage, world_size, high) and high < 2**20:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._fits(workload, stage, world_size, middle)
            low, high = (middle, high) if fits else (low, middle)
        return low

    def choices(self, world_size: int) -> Iterator[Choice]:
        """For every stage and policy, the step of `batch_size` samples in the fewest passes."""
        if self.batch_size % world_size:
            return
        share = self.batch_size // world_size
        for stage in self.stages:
            for workload in self.workloads:
                for micro in (n for n in range(share, 0, -1) if share % n == 0):
                    if self._fits(workload, stage, world_size, micro, share // micro):
                        yield self._choice(workload, stage, world_size, micro, share // micro)
                        break

    def best(self, world_size: int) -> Choice | None:
        """The quickest choice; among those within 2 % of it, the one that needs least memory."""
        choices = list(self.choices(world_size))
        if not choices:
            return None
        quickest = min(choice.seconds for choice in choices)
        close = (choice for choice in choices if choice.seconds <= 1.02 * quickest)
        return min(close, key=lambda choice: choice.memory.peak)

    def _fits(
        self, workload: Workload, stage: int, world_size: int, micro: int, accumulation: int = 1
    ) -> bool:
        memory = self.memory(workload, stage, world_size, micro, accumulation)
        return memory.on_gpu <= self.gpu.memory * GIB

    def _choice(
        self, workload: Workload, stage: int, world_size: int, micro: int, accumulation: int
    ) -> Choice:
        n, gpu = workload.parameters, self.gpu
        sent = traffic(n, stage, world_size, accumulation)
        link = gpu.link if world_size <= gpu.per_node else min(gpu.link, self.network)
        computing = accumulation * workload.seconds(micro, gpu)
        sending = sent / (link * 1e9)
        if self.stages[stage].get("overlap_comm"):  # behind the backward pass
            sending = max(0.0, sending - 2 / 3 * computing)
        return Choice(
            policy=workload.policy,
            stage=stage,
            world_size=world_size,
            micro_batch=micro,
            accumulation=accumulation,
            memory=self.memory(workload, stage, world_size, micro, accumulation),
            traffic=sent,
            seconds=computing + sending + update_seconds(n, stage, world_size, gpu),
        )
