"""From a configuration to the search over settings, and the advice after an out-of-memory error."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from lola_ds.config import TASKS, read_deepspeed
from lola_ds.estimate.settings import SettingSearch
from lola_ds.estimate.trace import describe_frames, trace_training
from lola_ds.estimate.workload import Workload
from lola_ds.hardware import GIB, GPUS, NETWORKS, Gpu
from lola_ds.train.ema_profiles import make_profiles

__all__ = ["POLICIES", "STAGES", "make_search", "suggest_setting"]

POLICIES = ("none", "selective", 2, "full")
"""The checkpointing policies that are compared."""

STAGES = (
    *("zero0", "zero1", "zero2", "zero3"),
    *("zero1_offload", "zero2_offload", "zero3_offload", "zero3_nvme"),
)
"""The options of the group `deepspeed` that are compared."""


def make_search(
    config: dict[str, Any], shape: Sequence[int], labels: int, gpu: Gpu, network: float
) -> SettingSearch:
    """Traces a training under every checkpointing policy.

    Arguments:
        config: The composed configuration.
        shape: The shape of a frame, :math:`(C, *S)`.
        labels: The number D of label features.
        gpu: The GPU.
        network: The bandwidth between nodes, in GB/s per GPU.
    """
    group, workloads = TASKS[config["task"]], []
    for policy in POLICIES:
        if config["compile"] and policy == "selective":
            continue  # refused: it cannot select operations within a compiled graph
        traced = {**config, group: {**config[group], "checkpointing": policy}}
        low, high = (trace_training(traced, shape, labels, samples) for samples in (2, 4))
        workloads.append(Workload(str(policy), low, high))
    stages = STAGES if config["optim"]["optimizer"] == "adamw" else STAGES[:1]
    return SettingSearch(
        workloads,
        {name: read_deepspeed(f"{name}.json")["zero_optimization"] for name in stages},
        batch_size=config["train"]["batch_size"],
        gpu=gpu,
        network=network,
        sequence=config["sequence_parallel"],
        averages=len(make_profiles(config["ema"])),
    )


def suggest_setting(config: dict[str, Any], device: torch.device, world_size: int) -> str:
    """The advice to a training that ran out of memory, for the memory that its ranks have.

    Arguments:
        config: The composed configuration.
        device: The device of this rank.
        world_size: The number of ranks.
    """
    group, memory = TASKS[config["task"]], _memory_per_rank(device, world_size)
    gpu = replace(GPUS["h100"], memory=memory)
    search = make_search(config, *describe_frames(config), gpu, NETWORKS["ndr400"])
    setting = search.best(world_size)
    if setting is None:
        need = "a smaller network, or more or larger GPUs"
    elif setting.overrides(group) == _current_overrides(config, group):
        need = (
            "no more than this setting takes: does another process use the memory? If not, raise "
            "train.accumulation"
        )
    else:
        need = setting.overrides(group)
    return (
        f"by the estimate, {world_size} × {memory:.1f} GiB need {need}; "
        "`lola-ds plan` with the same overrides shows every setting"
    )


def _memory_per_rank(device: torch.device, world_size: int) -> float:
    """The GiB that a rank can allocate: those of its GPU, or its share of host memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / GIB - 1
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    share = psutil.virtual_memory().total / world_size
    return (share if limit == resource.RLIM_INFINITY else min(limit, share)) / GIB


def _current_overrides(config: dict[str, Any], group: str) -> str:
    policy = {False: "none", True: "full"}.get(*2 * [config[group]["checkpointing"]])
    return (
        f"deepspeed={Path(config['deepspeed']['config']).stem} "
        f"train.accumulation={config['train']['accumulation']} {group}.checkpointing={policy}"
    )
