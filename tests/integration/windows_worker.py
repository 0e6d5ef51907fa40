"""`lola-ds train` that notes the windows of every step, on a disk that may be full.

usage: windows_worker.py WORD …, the words of the command, and `full=RANK:STEP` for no more than a
kilobyte in any file of that rank from that step on. Windows go to RUN/windows_RANK.jsonl.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lola_ds.build.training import build_training
from lola_ds.cli.common import exit_at_once, run_command
from lola_ds.config import compose
from lola_ds.data import Batch
from lola_ds.distributed import leave_process_group
from lola_ds.train.loop import Trainer
from lola_ds.train.stop import EXIT_STOPPED, StopRequest
from lola_ds.train.zero import join_process_group


def observe(trainer: Trainer, run: Path, full: str) -> None:
    """Notes windows where batches are standardised."""
    prepare, rank = trainer.prepare, trainer.ranks.rank
    file = (run / f"windows_{rank}.jsonl").open("a", buffering=1)
    where, when = map(int, full.split(":"))

    def prepare_and_note(batch: Batch) -> Batch:
        if torch.is_grad_enabled():  # not in validation
            file.write(json.dumps([trainer.step, batch.window.tolist()]) + "\n")
            if rank == where and trainer.step == when:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return prepare(batch)

    trainer.prepare = prepare_and_note


def main(words: Sequence[str]) -> None:
    stop = StopRequest()
    stop.listen()
    full = [word.removeprefix("full=") for word in words if word.startswith("full=")]
    config = compose([word for word in words if not word.startswith("full=")])
    trainer = build_training(config, join_process_group("cpu"), stop)
    observe(trainer, Path(config["run"]), *(full or ["-1:0"]))
    trainer.fit()
    trainer.close()
    leave_process_group()
    if trainer.stopping:
        raise SystemExit(EXIT_STOPPED)


if __name__ == "__main__":
    exit_at_once(lambda: run_command(main, sys.argv[1:]))
