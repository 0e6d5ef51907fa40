"""The `lola-ds` command: finds the subcommand and hands the words over."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from lola_ds.cli.common import exit_at_once, fail, run_command

GROUP = "lola_ds.commands"
"""The entry-point group of the commands: each names a module with `HELP` and `main(argv)`."""

ORDER = (
    *("synthesize", "stats", "shard", "verify", "inspect", "plan", "train", "encode", "convert"),
    *("eval", "report", "submit", "runs", "logs"),
)
"""The commands of this package in the order of their use; metadata hold them by the alphabet."""

_USAGE = """usage: lola-ds COMMAND [--flags] key=value ...

Latent-space neural emulators of physics, trained at scale with DeepSpeed.

commands:
{commands}

examples:
  lola-ds synthesize dataset=euler_periodic out=WELL resolution=64
  lola-ds shard dataset=euler_periodic source=WELL out=SHARDS
  lola-ds train task=autoencoder dataset=euler_periodic data=SHARDS run=runs/ae
  deepspeed --num_gpus 8 --module lola_ds.cli.train task=autoencoder \\
      data=SHARDS run=runs/ae

`lola-ds COMMAND --help` explains one command.
LOLA_DEBUG=1 shows tracebacks of user errors."""


def find_commands() -> dict[str, EntryPoint]:
    """The installed commands by name: those of this package in `ORDER`, then those of others."""
    found: dict[str, EntryPoint] = {}
    for command in sorted(entry_points(group=GROUP), key=lambda c: (_is_foreign(c), c.name)):
        found.setdefault(command.name, command)
    names = [name for name in ORDER if name in found]
    return {name: found[name] for name in (*names, *found)}


def _is_foreign(command: EntryPoint) -> bool:
    return command.dist is None or command.dist.name != "lola_ds"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = find_commands()
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE.format(commands="\n".join(map(_summary, commands.values()))))
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        from lola_ds import __version__

        print(__version__)
        return
    name, *rest = words
    if name not in commands:
        fail(f"unknown command '{name}'; known: {', '.join(commands)}")
    module = commands[name].load()
    if name == "train":
        exit_at_once(lambda: run_command(module.main, rest))
    run_command(module.main, rest)


def _summary(command: EntryPoint) -> str:
    """A line of the usage: the command's name and the first line of its help."""
    try:
        text = command.load().HELP.strip().splitlines()[0]
    except Exception as error:  # such as a missing library: the other commands still work
        text = f"broken: {type(error).__name__} in {command.value}"
    return f"  {command.name:<11} {textwrap.shorten(text, 66, placeholder=' …')}"


if __name__ == "__main__":
    main()
