"""`lola-ds runs`: what has become of the runs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.log import logger

HELP = """Lists the runs below folders: state, progress, speed, last error.

Reads the run folders and, where there is a Slurm, its queue.

examples:
  lola-ds runs
  lola-ds runs runs/ae /scratch/me/runs"""


def main(argv: Sequence[str]) -> None:
    """Prints one line per run."""
    _, words = parse_arguments(make_parser("runs", HELP), argv)

    from launch.runs import find_runs, read_run, table
    from launch.slurm import queue

    try:
        queued = queue()
    except OSError as error:
        logger.warning(f"{error}; states are read from the folders alone")
        queued = {}
    for word in words or ["."]:
        root = Path(word).absolute()
        runs = [read_run(folder, queued) for folder in find_runs(root)]
        print(table(runs, root) if runs else f"no runs in {root}")
