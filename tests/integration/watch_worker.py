"""One rank: trainings with a planted fault.

usage: watch_worker.py FAULT RANK STEP COUNT -- WORD … -- WORD … -- …

FAULT is `nan` (in channel 2 of the first sample, for COUNT steps from STEP) or `stall` (COUNT
seconds at STEP), on rank RANK only; or `scale` (the loss's scale becomes 2^COUNT at STEP), on all.
A training that stops early says so in RUN/stopped.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from lola_ds.build.training import build_training
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose
from lola_ds.data import Batch
from lola_ds.distributed import leave_process_group
from lola_ds.estimate.trace import count_flops
from lola_ds.log import log_to_stderr
from lola_ds.train.loop import Trainer, TrainingStoppedError
from lola_ds.train.zero import join_process_group


def plant(trainer: Trainer, fault: str, rank: int, step: int, count: int) -> None:
    """Lets the fault happen where batches are standardised."""
    clean = trainer.prepare

    def prepare(batch: Batch) -> Batch:
        batch = clean(batch)
        if not trainer.engine.module.training:  # the engine itself never leaves training
            return batch
        if fault == "scale" and trainer.step == step:
            trainer.scale.value = 2.0**count
        if trainer.ranks.rank != rank:
            return batch
        if fault == "stall" and trainer.step == step:
            time.sleep(count)
        if fault == "nan" and step <= trainer.step < step + count:
            x = batch.x.clone()
            x[0, 2] = float("nan")
            batch = replace(batch, x=x)
        return batch

    trainer.prepare = prepare


def main() -> None:
    (fault, *numbers), *trainings = (
        words.split() for words in " ".join(sys.argv[1:]).split(" -- ")
    )
    log_to_stderr()
    ranks = join_process_group("cpu")
    for words in trainings:
        config = compose(words)
        trainer = build_training(config, ranks, count_flops=count_flops)
        plant(trainer, fault, *map(int, numbers))
        try:
            trainer.fit()
        except TrainingStoppedError as error:
            if ranks.rank == 0:
                (Path(config["run"]) / "stopped").write_text(str(error))
        trainer.close()
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(main)
