"""One rank: several trainings one after another, to pay for the imports once.

usage: train_worker.py WORD … -- WORD … -- …   (each list as for `lola-ds train`)
"""

from __future__ import annotations

import sys

from lola_ds.build.training import build_training
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose
from lola_ds.distributed import leave_process_group
from lola_ds.log import log_to_stderr
from lola_ds.train.zero import join_process_group


def main() -> None:
    log_to_stderr()
    ranks = join_process_group("cpu")
    for words in " ".join(sys.argv[1:]).split(" -- "):
        trainer = build_training(compose(words.split()), ranks)
        trainer.fit()
        trainer.close()
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(main)
