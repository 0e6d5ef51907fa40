"""`lola-ds plan`: what a training will need, from its configuration alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.config import TASKS, compose, parse_overrides, setting

HELP = """Estimates a training's memory and time, recommends a setting.

Needs no GPU and no data: the network is traced on tensors without storage. The overrides are those
of `lola-ds train`; run= and data= may be left out. Memory is what torch's allocator, CUDA and NCCL
take. Time is a roofline of the uncompiled kernels, so a compiled training is faster.

keys, beside those of `lola-ds train`:
  nodes=1            nodes of the recommendation
  gpus=8             GPUs in each node (default: those of a usual node of the GPU)

flags:
  --grid 512x512     points of the physical grid (default: those of the shards in data=)
  --gpu NAME         a100-40, a100-80, h100 (default), h200, l40s, rtx4090
  --network NAME     ndr400 (default), hdr200, edr100, ethernet100, ethernet25
  --json             everything as one JSON object

examples:
  lola-ds plan task=autoencoder dataset=euler_open --grid 512x512
  lola-ds plan task=diffusion dataset=euler_open ae_run=runs/ae --grid 512x512 nodes=2 gpus=8
  lola-ds plan task=surrogate data=SHARDS train.batch_size=256 --gpu a100-40 --network hdr200
  lola-ds plan task=surrogate surrogate=vit_pixel sequence_parallel=4 --grid 512x512"""


@dataclass
class Options:
    """The keys of the command beside those of a training."""

    nodes: int = setting(1, least=1)
    gpus: int | None = setting(None, least=1)


def main(argv: Sequence[str]) -> None:
    """Traces the network under every checkpointing policy and prints what each setting needs."""
    from lola_ds.hardware import GPUS, NETWORKS

    parser = make_parser("plan", HELP)
    parser.add_argument("--grid", help="points of the physical grid, such as 512x512")
    parser.add_argument("--gpu", choices=list(GPUS), default="h100")
    parser.add_argument("--network", choices=list(NETWORKS), default="ndr400")
    parser.add_argument("--json", action="store_true")
    args, words = parse_arguments(parser, argv)
    own = [word for word in words if word.partition("=")[0] in ("nodes", "gpus")]
    options = parse_overrides(Options, own)

    from lola_ds.estimate.report import make_report, report_text
    from lola_ds.estimate.search import make_search
    from lola_ds.estimate.trace import describe_frames

    config = compose(["run=unused", "data=unused", *(word for word in words if word not in own)])
    sequence, gpu = config["sequence_parallel"], GPUS[args.gpu]
    gpu = replace(gpu, per_node=options.gpus or gpu.per_node)
    if gpu.per_node % sequence:
        raise ValueError(
            f"sequence_parallel={sequence} does not divide gpus={gpu.per_node}; the GPUs that "
            "share a sample are in one node"
        )
    shape, labels = describe_frames(config, _parse_grid(args.grid))
    group = TASKS[config["task"]]
    search = make_search(config, shape, labels, gpu, NETWORKS[args.network])
    steps = config["train"]["epochs"] * (config["train"]["epoch_size"] // search.batch_size)
    report = make_report(search, steps, options.nodes * gpu.per_node, group)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        names = {"gpu": args.gpu, "network": args.network}
        print(report_text(report, search, shape=shape, group=group, **names))


def _parse_grid(text: str | None) -> list[int] | None:
    """`512x128` -> [512, 128]."""
    if text is None:
        return None
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--grid {text}: expected points along each axis, such as 512x512")
    return [int(size) for size in sizes]
