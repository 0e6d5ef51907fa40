"""One rank: checks the newest checkpoint, then saves one after another until it is killed.

usage: saving_worker.py FOLDER STAGE; a real engine. At step n every weight, average and optimizer
state is a known number of n, in float32: a checkpoint whose parts come from different steps is
found out.
FOLDER/found_RANK gets the step that this rank found, FOLDER/saving says that saves go on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from stages_worker import BATCH, Objective, batch
from torch import Tensor

from lola_ds.cli.common import exit_at_once, run_command
from lola_ds.config import compose, fill_deepspeed
from lola_ds.distributed import leave_process_group
from lola_ds.train.checkpoint.format import CheckpointReader
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.checkpoint.training_state import load_weights, restore_ema, restore_optimizer
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential, PowerLaw
from lola_ds.train.optim import make_optimizer
from lola_ds.train.zero import Engine, Partition, join_process_group

WORDS = ["task=autoencoder", "run=r", "data=d", "precision=fp32"]
WORDS += [f"train.batch_size={BATCH}", f"train.epoch_size={BATCH}"]


def parts(
    partitions: Sequence[Partition], optimizer: torch.optim.Optimizer, ema: Ema
) -> Iterator[tuple[str, Tensor]]:
    """All that a rank saves, by kind: weights, averages, optimizer states."""
    for i, f in enumerate(partitions):
        yield "weight", f.master
        for profile, values in zip(ema.profiles, ema.values):
            yield profile.kind, values[i]
        for kind in ("exp_avg", "exp_avg_sq"):
            yield kind, f.view(optimizer.state[f.flat][kind])


def value(kind: str, step: int) -> float:
    return step + len(kind) / 64


def check(reader: CheckpointReader | None, live: Iterator[tuple[str, Tensor]]) -> int:
    """The step found, after comparing what was loaded with what that step held."""
    if reader is None:
        return 0
    step = reader.state["step"]
    for kind, tensor in live:
        assert torch.all(tensor == value(kind, step)), (kind, step, tensor)
    return step


def main(words: Sequence[str]) -> None:
    folder, stage = Path(words[0]), words[1]
    ranks = join_process_group("cpu")
    config = compose([*WORDS, f"deepspeed=zero{stage}"])
    torch.manual_seed(0)
    objective = Objective()
    store = CheckpointStore(folder / "checkpoints", 2, ranks.rank, ranks.world_size)
    reader = store.newest()
    if reader is not None:
        load_weights(objective, reader)
    optimizer = make_optimizer(objective.parameters(), config["optim"])
    engine = Engine(objective, optimizer, fill_deepspeed(config, ranks.world_size))
    partitions = engine.local_partitions()
    ema, optimizer = Ema(partitions, [Exponential(0.9), PowerLaw(0.1)]), engine.optimizer
    if reader is not None:
        restore_optimizer(optimizer, engine.resident_partitions(), reader, reader.state["step"])
        restore_ema(ema, reader)
        step = check(reader, parts(partitions, optimizer, ema))
    else:
        step = 0
        engine.backward(engine(batch(0, ranks.rank, ranks.world_size))[0])
        engine.step()
    (folder / f"found_{ranks.rank}").write_text(str(step))
    while True:
        step += 1
        store.wait_until_read()
        for kind, tensor in parts(partitions, optimizer, ema):
            tensor.fill_(value(kind, step))
        store.save(step, engine.module, partitions, optimizer, ema, {"step": step})
        (folder / "saving").touch()
        if (folder / "enough").exists():
            break
    store.wait()
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(lambda: run_command(main, sys.argv[1:]))
