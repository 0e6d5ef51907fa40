"""One rank that reads batches, notes what it got, and saves its state; made to be killed.

Arguments: folder of shards, output folder, first step, last step, workers, quarantine (0 or 1),
stay (0, or 1 to wait for a signal at the end).
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from lola_ds.cli.common import exit_at_once, run_command
from lola_ds.data import ElasticSampler, ShardDataset, build_loader

BATCH, AUGMENT = 24, ("random_axis_flip", "random_axis_permute", "random_axis_roll")


def main(words: Sequence[str]) -> None:
    """Reads; see the module's docstring."""
    folder, out = words[:2]
    first, last, workers, quarantine, stay = map(int, words[2:])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if quarantine and world > 1:
        torch.distributed.init_process_group("gloo")
    windows = ShardDataset(folder, length=3, stride=2)
    sampler = ElasticSampler(len(windows), BATCH, rank, world, seed=3)
    options = {"workers": workers, "augment": AUGMENT, "quarantine": bool(quarantine)}
    with build_loader(windows, sampler, **options) as loader:
        if first:
            loader.load_state_dict(json.loads((Path(out) / f"state-{first}").read_text()))
        for step, batch in enumerate(islice(loader, last - first), first):
            rows = [
                (int(window), hashlib.sha256(x.numpy().tobytes()).hexdigest(), float(weight))
                for x, weight, window in zip(batch.x, batch.weight, batch.window)
            ]
            if rank == 0:
                (Path(out) / f"state-{step + 1}").write_text(json.dumps(loader.state_dict()))
            target = Path(out) / f"{step}-{rank}"
            target.with_suffix(".tmp").write_text(json.dumps(rows))
            target.with_suffix(".tmp").rename(target)
        (Path(out) / f"end-{rank}").write_text(json.dumps(loader.state_dict()))
    while stay:
        time.sleep(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    exit_at_once(lambda: run_command(main, sys.argv[1:]))
