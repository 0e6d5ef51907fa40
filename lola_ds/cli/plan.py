"""`lola-ds plan`: what a training will need, from its configuration alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lola_ds.cli.common import make_parser, parse_arguments

if TYPE_CHECKING:
    from lola_ds.distributed import Ranks
    from lola_ds.estimate.memory import Choice, Gpu, Planner

HELP = """Says before a training starts whether it fits, how long it takes, and what to choose.

Needs no GPU and no data: the network is traced on tensors without storage. The words are those of
`lola-ds train`; run= and data= may be left out. Memory is that of torch's allocator and of what
CUDA and NCCL add; time is a roofline of the uncompiled kernels, so compiling makes it shorter.

flags:
  --grid 512x512     points of the physical grid (default: those of the shards in data=)
  --gpu NAME         a100-40, a100-80, h100 (default), h200, l40s, rtx4090
  --network NAME     ndr400 (default), hdr200, edr100, ethernet100, ethernet25
  --gpus N           GPUs of the recommendation (default: 8)
  --json             everything as one JSON object

examples:
  lola-ds plan task=autoencoder dataset=euler_open --grid 512x512
  lola-ds plan task=diffusion dataset=euler_open ae_run=runs/ae --grid 512x512 --gpus 16
  lola-ds plan task=surrogate data=SHARDS train.batch_size=256 --gpu a100-40 --network hdr200
  lola-ds plan task=surrogate surrogate=vit_pixel sequence_parallel=4 --grid 512x512"""

POLICIES = ("none", "selective", 2, "full")
STAGES = ("zero0", "zero1", "zero2", "zero3")
STAGES += ("zero1_offload", "zero2_offload", "zero3_offload", "zero3_nvme")
WORLDS = [2**n for n in range(11)]


def main(argv: Sequence[str]) -> None:
    """Traces the network under every checkpointing policy and prints what each setting needs."""
    from lola_ds.estimate.memory import GPUS, NETWORKS

    parser = make_parser("plan", HELP)
    parser.add_argument("--grid", help="points of the physical grid, such as 512x512")
    parser.add_argument("--gpu", choices=list(GPUS), default="h100")
    parser.add_argument("--network", choices=list(NETWORKS), default="ndr400")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args, words = parse_arguments(parser, argv)

    from lola_ds.config import TASKS, compose

    config = compose(["run=unused", "data=unused", *words])
    sequence, per_node = config["sequence_parallel"], GPUS[args.gpu].per_node
    if sequence > per_node or args.gpus % sequence:
        raise ValueError(
            f"sequence_parallel={sequence} GPUs of a node of {per_node} share a sample, out of "
            f"--gpus {args.gpus}; choose a divisor of both"
        )
    shape, labels = _frames(config, args.grid)
    group = TASKS[config["task"]]
    planner = make_planner(config, shape, labels, GPUS[args.gpu], NETWORKS[args.network])
    steps = config["train"]["epochs"] * (config["train"]["epoch_size"] // planner.batch_size)
    report = _report(planner, steps, args.gpus, group)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report, planner, shape, group, args)))


def make_planner(
    config: dict[str, Any], shape: Sequence[int], labels: int, gpu: Gpu, network: float
) -> Planner:
    """Weighs every stage and checkpointing policy for a training.

    Arguments:
        config: the composed configuration.
        shape: the shape of a frame, (C, *S).
        labels: the number of label features.
        gpu: the GPU.
        network: GB/s per GPU between nodes.
    """
    from lola_ds.config import TASKS, read_deepspeed
    from lola_ds.estimate.memory import Planner, Workload
    from lola_ds.estimate.trace import trace_training
    from lola_ds.train.ema import make_profiles

    group, workloads = TASKS[config["task"]], []
    for policy in POLICIES:
        if config["compile"] and policy == "selective":
            continue  # refused: it could choose nothing within a graph
        traced = {**config, group: {**config[group], "checkpointing": policy}}
        low, high = (trace_training(traced, shape, labels, samples) for samples in (2, 4))
        workloads.append(Workload(str(policy), low, high))
    stages = STAGES if config["optim"]["optimizer"] == "adamw" else STAGES[:1]
    return Planner(
        workloads,
        {name: read_deepspeed(f"{name}.json")["zero_optimization"] for name in stages},
        config["train"]["batch_size"],
        gpu,
        network,
        config["sequence_parallel"],
        len(make_profiles(config["ema"])),
    )


def advise(config: dict[str, Any], ranks: Ranks) -> str:
    """What a training that ran out of memory could do, by its plan for the memory there is.

    Arguments:
        config: the composed configuration.
        ranks: this process among its peers.
    """
    from lola_ds.config import TASKS
    from lola_ds.estimate.memory import GPUS, NETWORKS

    group, memory = TASKS[config["task"]], _memory_per_rank(ranks)
    gpu = replace(GPUS["h100"], memory=memory)
    planner = make_planner(config, *_frames(config, None), gpu, NETWORKS["ndr400"])
    choice = planner.best(ranks.world_size)
    if choice is None:
        need = "a smaller network, or more or larger GPUs"
    elif choice.words(group) == _present_words(config, group):
        need = "nothing less: is another process using the memory? If not, more train.accumulation"
    else:
        need = choice.words(group)
    return (
        f"by the plan, {ranks.world_size} × {memory:.1f} GiB need {need}; "
        "`lola-ds plan` with the same words shows every setting"
    )


def _memory_per_rank(ranks: Ranks) -> float:
    """GiB that a rank can allocate: of its GPU, or its share of the host."""
    import resource

    import psutil
    import torch

    if ranks.device.type == "cuda":
        return torch.cuda.mem_get_info(ranks.device)[1] / 2**30 - 1
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    share = psutil.virtual_memory().total / ranks.world_size
    return (share if limit == resource.RLIM_INFINITY else min(limit, share)) / 2**30


def _present_words(config: dict[str, Any], group: str) -> str:
    policy = {False: "none", True: "full"}.get(*2 * [config[group]["checkpointing"]])
    return (
        f"deepspeed={Path(config['deepspeed']['config']).stem} "
        f"train.accumulation={config['train']['accumulation']} {group}.checkpointing={policy}"
    )


def _frames(config: dict[str, Any], grid: str | None) -> tuple[tuple[int, ...], int]:
    from lola_ds.build import open_split
    from lola_ds.estimate.trace import describe_frames

    if grid is not None:
        sizes = grid.lower().split("x")
        if not all(size.isdecimal() and int(size) for size in sizes):
            raise ValueError(f"--grid {grid}: expected points along each axis, such as 512x512")
        return describe_frames(config, [int(size) for size in sizes])
    if not Path(config["data"]).is_dir():
        raise ValueError("the size of the fields is unknown: add --grid 512x512, or data=SHARDS")
    windows = open_split(config, "train")
    return windows.shape, windows.labels.shape[1]


def _report(planner: Planner, steps: int, gpus: int, group: str) -> dict[str, Any]:
    """Everything that is printed, as plain numbers."""
    none = planner.workloads[0]
    best = [planner.best(world) for world in sorted({*WORLDS, gpus})]
    return {
        "parameters": none.parameters,
        "flops_per_sample": planner.sequence * none.flops,
        "sequence_parallel": planner.sequence,
        "activation_bytes_per_sample": {w.policy: w.sample_bytes for w in planner.workloads},
        "gpus": gpus,
        "memory": [
            {
                "policy": workload.policy,
                "deepspeed": stage,
                "states": planner.memory(workload, stage, gpus, 0).on_gpu,
                "host": planner.memory(workload, stage, gpus, 0).host,
                "drive": planner.memory(workload, stage, gpus, 0).drive,
                "largest_micro_batch": planner.largest(workload, stage, gpus),
            }
            for workload in planner.workloads
            for stage in planner.stages
        ],
        "steps": steps,
        "scaling": [_scaled(choice, steps, group) for choice in best if choice is not None],
    }


def _scaled(choice: Choice, steps: int, group: str) -> dict[str, Any]:
    days = steps * choice.seconds * choice.world_size / 86400
    further = {"peak": choice.memory.on_gpu, "gpu_days": days, "words": choice.words(group)}
    return {**asdict(choice), **further}


def _lines(
    report: dict[str, Any], planner: Planner, shape: Sequence[int], group: str, args: Any
) -> Iterator[str]:
    """The report for people."""
    gib = 2**30
    frame = "×".join(map(str, shape))
    yield f"network       {group}, frames of {frame}, {report['parameters'] / 1e6:.1f} M parameters"
    yield f"work          {report['flops_per_sample'] / 1e9:.1f} GFLOP a sample, there and back"
    parts = (f"{p} {b / gib:.3f}" for p, b in report["activation_bytes_per_sample"].items())
    shared = f", on each of {planner.sequence} GPUs that share it" if planner.sequence > 1 else ""
    yield f"activations   GiB a sample{shared}: {', '.join(parts)}"
    yield ""
    memory = f"{planner.gpu.memory:.0f} GiB"
    yield f"{args.gpus} × {args.gpu} of {memory}: GiB without samples on the GPU, on the host"
    yield "and on its drive; the largest micro-batch, by checkpointing policy"
    policies = "".join(f"{workload.policy:>11}" for workload in planner.workloads)
    yield f"{'deepspeed':<15}{'GPU':>7}{'host':>7}{'drive':>7}{policies}"
    for name in planner.stages:
        rows = [row for row in report["memory"] if row["deepspeed"] == name]
        states = "".join(f"{rows[0][key] / gib:>7.1f}" for key in ("states", "host", "drive"))
        yield f"{name:<15}{states}" + "".join(f"{r['largest_micro_batch']:>11}" for r in rows)
    yield ""
    yield f"{report['steps']} steps of {planner.batch_size} samples, {args.network} between nodes"
    yield (
        f"{'GPUs':>5}{'deepspeed':>15}{'checkpointing':>15}{'micro':>7}{'passes':>8}{'GiB':>7}"
        f"{'sent GB':>9}{'ms/step':>9}{'samples/s':>11}{'days':>8}{'GPU-days':>10}"
    )
    for row in report["scaling"]:
        yield (
            f"{row['world_size']:>5}{row['deepspeed']:>15}{row['policy']:>15}{row['micro_batch']:>7}"
            f"{row['accumulation']:>8}{row['peak'] / gib:>7.1f}{row['traffic'] / 1e9:>9.2f}"
            f"{1e3 * row['seconds']:>9.1f}{planner.batch_size / row['seconds']:>11.1f}"
            f"{row['gpu_days'] / row['world_size']:>8.2f}{row['gpu_days']:>10.2f}"
        )
    yield ""
    yield _advice(report, planner)


def _advice(report: dict[str, Any], planner: Planner) -> str:
    gpus = report["gpus"]
    groups = gpus // planner.sequence
    if planner.batch_size % groups:
        return (
            f"train.batch_size={planner.batch_size} does not divide over {groups} ranks; choose a "
            f"multiple of {groups}"
        )
    for row in report["scaling"]:
        if row["world_size"] == gpus:
            return f"for {gpus} GPUs: {row['words']}"
    return (
        f"no setting fits: one sample needs more memory than {gpus} GPUs have; choose larger ones"
    )
