"""Several commands one after another in one process, to pay for the imports once.

usage: commands_worker.py COMMAND WORD … -- COMMAND WORD … -- …
"""

from __future__ import annotations

import importlib
import sys

from lola_ds.build.training import build_training
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose
from lola_ds.distributed import leave_process_group
from lola_ds.train.zero import join_process_group


def main() -> None:
    ranks = join_process_group("cpu")
    for words in " ".join(sys.argv[1:]).split(" -- "):
        command, *rest = words.split()
        if command == "train":
            trainer = build_training(compose(rest), ranks)
            trainer.fit()
            trainer.close()
        else:
            importlib.import_module(f"lola_ds.cli.{command}").main(rest)
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(main)
