"""Several commands one after another in one process, to pay for the imports once.

usage: commands_worker.py COMMAND WORD … -- COMMAND WORD … -- …
"""

from __future__ import annotations

import importlib
import sys

from lola_ds.build import build_training
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose
from lola_ds.train.zero.engine import join, leave


def main() -> None:
    ranks = join("cpu")
    for words in " ".join(sys.argv[1:]).split(" -- "):
        command, *rest = words.split()
        if command == "train":
            trainer = build_training(compose(rest), ranks)
            trainer.fit()
            trainer.close()
        else:
            importlib.import_module(f"lola_ds.cli.{command}").main(rest)
    leave()


if __name__ == "__main__":
    exit_at_once(main)
