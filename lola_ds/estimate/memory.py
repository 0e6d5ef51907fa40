"""What a training will need, before it starts: memory, traffic, time; and which setting to choose.

The cost of a forward and backward pass is traced (`cost.py`); what DeepSpeed adds is counted here,
in bytes per rank for N float32 parameters on W ranks, with s = 4 N / W and K moving averages
(Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054, and DeepSpeed's sources for the
buffers):

| stage | always there | forward and backward | optimizer step |
|---|---|---|---|
| 0 | weights 4 N, Adam 8 N, averages K s | activations and gradients, a copy of these | 4 N |
| 1 | weights 4 N, master s, Adam 2 s, averages K s | as at stage 0, a bucket | gradients 2 s |
| 2 | weights 4 N, master s, Adam 2 s, averages K s | activations, a bucket | gradients 2 s |
| 3 | weights, master, gradients, Adam 5 s, averages K s, a bucket | activations, weights | s |

Between ranks, a second bucket is still being sent while the next one is filled.
Accumulating several micro-batches keeps the gradients of the one before: 4 N at stages 0 and 1, s
at stage 2.
Offloading the optimizer moves master, gradients, Adam and averages, (4 + K) s, to the host, where
DeepSpeed keeps one more s: at stages 1 and 2 the weights that go back, at stage 3 the gradients a
second time. At stage 3, offloading the parameters moves their s too. Offloaded to a drive instead,
masters and Adam of three sub-groups at a time are in host memory: one is read, one stepped, one
written.

Ranks that share the tokens of a sample (sequence parallelism) are W ranks to ZeRO, which however
take as many samples as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lola_ds.estimate.cost import PassCost
from lola_ds.train.zero.nvme_offload import drive_bytes

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

HOST_BANDWIDTH = 20e9
"""Bytes per second and GPU, of copies to and from the host, and of the host's memory; a guess."""

DRIVE_BANDWIDTH = 1.5e9
"""Bytes per second and GPU, of reading or writing a local drive; a guess."""

FLATTENED_AT_ONCE = 500_000_000
"""Elements of gradients that DeepSpeed copies to reduce them at stage 0, whatever its file says."""

FRAGMENTATION = 1.05
"""What torch's allocator reserves over what is allocated."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: what is always there, and the most in either half of a step.

    Attributes:
        resident: always on the GPU.
        passing: beside, in forward and backward passes.
        stepping: beside, in the optimizer's step.
        host: on the host instead.
        drive: on a drive of the host instead.
    """

    resident: int
    passing: int
    stepping: int
    host: int = 0
    drive: int = 0

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

    def sent(self, samples: int) -> float:
        """Bytes of a pass to the ranks that share the samples' tokens."""
        return self._line(samples, self.low.sent, self.high.sent)

    def seconds(self, samples: int, gpu: Gpu) -> float:
        """Time of a forward and backward pass on `gpu`."""
        return self._line(samples, pass_seconds(self.low, gpu), pass_seconds(self.high, gpu))

    def _line(self, samples: int, low: float, high: float) -> float:
        slope = (high - low) / (self.high.samples - self.low.samples)
        return low + slope * (samples - self.low.samples)


def pass_seconds(cost: PassCost, gpu: Gpu) -> float:
    """Every kernel bound by arithmetic, traffic, sending or launch, whichever takes longest."""
    rates = {True: gpu.half * 1e12, False: gpu.single * 1e12}
    return sum(
        max(
            kernel.flops / rates[kernel.half],
            kernel.bytes / (gpu.bandwidth * 1e9),
            kernel.sent / (gpu.link * 1e9),
            LAUNCH_SECONDS,
        )
        for kernel in cost.kernels
    )


def offloads(zero: Mapping[str, Any], what: str) -> bool:
    """Whether a `zero_optimization` section moves `what` (`optimizer` or `param`) off the GPU."""
    return zero.get(f"offload_{what}", {"device": "none"})["device"] != "none"


def zero_memory(
    workload: Workload,
    samples: int,
    zero: Mapping[str, Any],
    world_size: int,
    accumulation: int = 1,
    averages: int = 1,
) -> Memory:
    """Memory of one rank; see the table above.

    Arguments:
        workload: the network.
        samples: the micro-batch.
        zero: the `zero_optimization` section of a DeepSpeed configuration.
        world_size: the number of ranks W.
        accumulation: micro-batches per step.
        averages: the number K of moving averages.
    """
    whole = 4 * workload.parameters
    share = -(-whole // world_size)
    bucket = 4 * zero["reduce_bucket_size"]
    several, moved = accumulation > 1, offloads(zero, "optimizer")
    if zero["stage"] == 0:
        flattened = min(whole, 4 * FLATTENED_AT_ONCE)
        accumulating = workload.activations(samples) + whole if several else 0
        passing = max(workload.with_gradients(samples), accumulating, whole + flattened)
        return Memory(3 * whole + averages * share, passing, whole)
    if zero["stage"] in (1, 2):
        filled_and_sent = 2 if zero["overlap_comm"] or world_size > 1 else 1
        buffers = bucket * filled_and_sent
        passing, kept = workload.activations(samples), share if several else 0
        if zero["stage"] == 1:  # keeps all gradients until the step
            accumulating = workload.activations(samples) + whole if several else 0
            passing, kept = max(workload.with_gradients(samples), accumulating, whole + share), 0
        if moved:
            return Memory(whole, passing + buffers, share, host=(5 + averages) * share + kept)
        resident = whole + (3 + averages) * share
        return Memory(resident, passing + buffers + kept, 2 * share + kept)
    gathered = 0
    if world_size > 1:
        live = min(whole, 4 * zero["stage3_max_live_parameters"])
        flattened = max(bucket, 4 * zero["stage3_prefetch_bucket_size"])
        gathered = live + min(whole, flattened)
    gone = (4 + averages) * share if moved else 0
    gone += share if offloads(zero, "param") else 0
    resident = (5 + averages) * share + bucket - gone
    passing = workload.activations(samples) + gathered
    if drive := drive_bytes(workload.parameters, zero, world_size, averages):
        in_use = 3 * min(share, 3 * 4 * zero["sub_group_size"])
        return Memory(resident, passing, share, gone - drive + in_use, drive)
    return Memory(resident, passing, share, gone + share if moved else gone)


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


def update_seconds(
    parameters: int, zero: Mapping[str, Any], world_size: int, gpu: Gpu, averages: int = 1
) -> float:
    """Time of AdamW (4 reads, 3 writes) and the averages (2 reads, 1 write), bound by memory.

    On the host, gradients come down before and weights go up afterwards. From a drive, masters and
    Adam's moments are read and written, and then the masters once more, for the averages.
    """
    share = 4 * parameters / world_size
    stepped = 4 * parameters if zero["stage"] == 0 else share
    touched = 7 * stepped + 3 * averages * share
    if drive_bytes(parameters, zero, world_size, averages):
        return (7 + 2 * averages) * share / DRIVE_BANDWIDTH
    if offloads(zero, "optimizer"):
        return (touched + 2 * share) / HOST_BANDWIDTH
    return touched / (gpu.bandwidth * 1e9)


@dataclass(frozen=True)
class Choice:
    """A way to take one optimizer step, and what it needs.

    Attributes:
        policy: the checkpointing policy.
        deepspeed: the option of the group `deepspeed`: a ZeRO stage, with offloading or not.
        world_size: the number of GPUs.
        micro_batch: samples per GPU and pass.
        accumulation: passes per step.
        memory: of one rank.
        traffic: bytes each rank sends.
        seconds: time of a step.
    """

    policy: str
    deepspeed: str
    world_size: int
    micro_batch: int
    accumulation: int
    memory: Memory
    traffic: float
    seconds: float

    def words(self, group: str) -> str:
        """The words of `lola-ds train` that choose it; `group` is the network's."""
        return (
            f"deepspeed={self.deepspeed} train.accumulation={self.accumulation} "
            f"{group}.checkpointing={self.policy}"
        )


@dataclass(frozen=True)
class Planner:
    """Weighs stages and policies for one training on one kind of GPU.

    Attributes:
        workloads: the network under each checkpointing policy.
        stages: the `zero_optimization` section of each option of the group `deepspeed`.
        batch_size: samples per optimizer step.
        gpu: the GPU.
        network: GB/s per GPU between nodes.
        sequence: GPUs that share the tokens of a sample, all on one node.
        averages: moving averages of the weights.
    """

    workloads: Sequence[Workload]
    stages: Mapping[str, Mapping[str, Any]]
    batch_size: int
    gpu: Gpu
    network: float
    sequence: int = 1
    averages: int = 1

    def memory(
        self, workload: Workload, stage: str, world_size: int, micro: int, accumulation: int = 1
    ) -> Memory:
        """Memory of one rank at this setting."""
        zero = self.stages[stage]
        return zero_memory(workload, micro, zero, world_size, accumulation, self.averages)

    def largest(self, workload: Workload, stage: str, world_size: int) -> int:
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
        groups = world_size // self.sequence
        if world_size % self.sequence or self.batch_size % groups:
            return
        share = self.batch_size // groups
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
        self, workload: Workload, stage: str, world_size: int, micro: int, accumulation: int = 1
    ) -> bool:
        memory = self.memory(workload, stage, world_size, micro, accumulation)
        return memory.on_gpu <= self.gpu.memory * GIB

    def _choice(
        self, workload: Workload, stage: str, world_size: int, micro: int, accumulation: int
    ) -> Choice:
        n, gpu, zero = workload.parameters, self.gpu, self.stages[stage]
        sent = traffic(n, zero["stage"], world_size, accumulation)
        link = gpu.link if world_size <= gpu.per_node else min(gpu.link, self.network)
        computing = accumulation * workload.seconds(micro, gpu)
        if offloads(zero, "param"):  # brought up for the forward and for the backward pass
            on_drive = zero["offload_param"]["device"] == "nvme"
            rate = DRIVE_BANDWIDTH if on_drive else HOST_BANDWIDTH
            computing += accumulation * 2 * 4 * n / world_size / rate
        sending = sent / (link * 1e9)
        if zero.get("overlap_comm"):  # behind the backward pass
            sending = max(0.0, sending - 2 / 3 * computing)
        updating = update_seconds(n, zero, world_size, gpu, self.averages)
        return Choice(
            policy=workload.policy,
            deepspeed=stage,
            world_size=world_size,
            micro_batch=micro,
            accumulation=accumulation,
            memory=self.memory(workload, stage, world_size, micro, accumulation),
            traffic=sent + accumulation * workload.sent(micro),
            seconds=computing + sending + updating,
        )
