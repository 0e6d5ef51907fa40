"""One rank: a few steps at every ZeRO stage, and the most bytes that tensors held.

usage: pass_memory_worker.py OUT TASK:STAGE …   writes to OUT the first rank's {"TASK:STAGE": bytes}
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lola_ds.build import build_model, complete_network
from lola_ds.build.objective import build_objective
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, fill_deepspeed, uses_cpu_adam
from lola_ds.data import Batch
from lola_ds.distributed import Ranks, leave_process_group
from lola_ds.estimate.pass_cost import Trace
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential
from lola_ds.train.optim import make_optimizer
from lola_ds.train.zero import Engine, join_process_group

BUCKET = 1_000_000  # no parameter is larger, as in real trainings
SAMPLES = 3
FRAME = (5, 32, 32)
LABELS = 6
WORDS = {
    "autoencoder": ["ae.hid_channels=[64,96,256]", "ae.hid_blocks=[1,1,2]"],
    "surrogate": ["surrogate.hid_channels=256", "surrogate.patch_size=[1,4,4]"],
    "diffusion": [
        "denoiser=unet_deep",
        "denoiser.hid_channels=[32,64,128]",
        "denoiser.hid_blocks=[1,1,2]",
        "denoiser.emb_features=64",
        "~denoiser.attention_heads",
        "denoiser.checkpointing=none",
    ],
}


def make_config(task: str, stage: str, world_size: int) -> dict[str, Any]:
    """A training of `SAMPLES` samples per rank, whose network is much larger than a bucket."""
    size = SAMPLES * world_size
    batch = [f"train.batch_size={size}", f"train.epoch_size={size}", "trajectory.length=3"]
    words = [f"task={task}", "run=r", "data=d", f"deepspeed=zero{stage}", *batch, *WORDS[task]]
    return compose([*words, "precision=fp32"])


def measure(task: str, stage: str, ranks: Ranks) -> int:
    """The peak in bytes, from building the network to the end of the third step."""
    config = make_config(task, stage, ranks.world_size)
    ds_config = fill_deepspeed(config, ranks.world_size)
    ds_config["zero_optimization"] |= small_buckets(stage)
    config = complete_network(config, FRAME, LABELS)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record,
        Trace([]) as trace,
    ):
        objective = build_objective(config, build_model(config))
        optimizer = make_optimizer(
            objective.parameters(), config["optim"], on_cpu=uses_cpu_adam(ds_config)
        )
        engine = Engine(objective, optimizer, ds_config)
        ema = Ema(engine.local_partitions(), [Exponential(0.9)])
        for step in range(3):
            loss, _ = engine(make_batch(task, SAMPLES))
            engine.backward(loss)
            engine.step()
            ema.update(step + 1)
            del loss, _
    # Both see all that is allocated. The one misses what the threads of collectives free, the
    # other what is freed from under a tensor.
    return min(peak_bytes(record), trace.peak)


def peak_bytes(record: profile) -> int:
    """The most bytes that torch's allocator held at once, beyond those before."""
    pending, events = record.profiler.kineto_results.experimental_event_tree(), []
    while pending:
        node = pending.pop()
        pending += node.children
        if node.name == "[memory]":
            events.append((node.start_time_ns, node.extra_fields))
    first = min(events, key=lambda event: event[0])[1]
    before = first.total_allocated - first.alloc_size
    return max(fields.total_allocated for _, fields in events) - before


def small_buckets(stage: str) -> dict[str, int]:
    """Buffers that do not hide the rest."""
    if stage.startswith("3"):
        return {"reduce_bucket_size": BUCKET, "stage3_prefetch_bucket_size": BUCKET}
    return {} if stage == "0" else {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}


def make_batch(task: str, samples: int) -> Batch:
    length = 1 if task == "autoencoder" else 3
    ids = torch.arange(samples)
    x = torch.randn(samples, FRAME[0], length, *FRAME[1:])
    return Batch(x, torch.zeros(samples, LABELS), ids, torch.ones(samples), ids)


def main() -> None:
    out, *jobs = sys.argv[1:]
    ranks = join_process_group("cpu")
    peaks = {}
    for job in jobs:
        task, stage = job.split(":")
        peaks[job] = measure(task, stage, ranks)
        gc.collect()
    if ranks.rank == 0:
        Path(out).write_text(json.dumps(peaks))
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(main)
