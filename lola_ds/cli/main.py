"""The `lola-ds` command: finds the subcommand and hands the words over."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lola_ds.cli.common import exit_at_once, fail, run_command

COMMANDS = {
    "synthesize": "small PDE solver -> The Well's HDF5",
    "stats": "field statistics of The Well's HDF5 -> a dataset's YAML",
    "shard": "The Well's HDF5 -> WebDataset shards with an index",
    "verify": "check the shards of a split against their index",
    "inspect": "what a split of shards holds: table and picture",
    "plan": "what a training will need: memory, time, and the setting to choose",
    "train": "train an autoencoder, a surrogate or a diffusion model (or resume)",
    "encode": "autoencoder over shards -> latent shards",
    "convert": "checkpoint -> plain weights (safetensors + config)",
    "eval": "roll out over a split: tables, figures, animation",
    "report": "results of any number of runs -> one HTML page",
    "submit": "a training, sweep or pipeline -> Slurm (or this machine)",
    "runs": "state, progress and speed of the runs in a folder",
    "logs": "what a run said: its ranks, its jobs",
}

_USAGE = """usage: lola-ds COMMAND [--flags] key=value ...

Latent-space neural emulators of physics, trained at scale with DeepSpeed.

commands:
{commands}

examples:
  lola-ds synthesize dataset=euler_periodic out=WELL resolution=64 trajectories=32
  lola-ds shard dataset=euler_periodic source=WELL out=SHARDS
  lola-ds train task=autoencoder dataset=euler_periodic data=SHARDS run=runs/ae
  deepspeed --num_gpus 8 --module lola_ds.cli.train task=autoencoder data=SHARDS run=runs/ae

`lola-ds COMMAND --help` explains one command. LOLA_DEBUG=1 shows tracebacks of user errors."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
        print(_USAGE.format(commands=rows))
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        from lola_ds import __version__

        print(__version__)
        return
    command, *rest = words
    if command not in COMMANDS:
        fail(f"unknown command '{command}'; known: {', '.join(COMMANDS)}")
    module = importlib.import_module(f".{command}", __package__)
    if command == "train":
        exit_at_once(lambda: run_command(module.main, rest))
    run_command(module.main, rest)


if __name__ == "__main__":
    main()
