"""What every command shares: flags, help, and errors in one line.

A command is a module with `HELP` (first line: summary; the rest: description and examples) and
`main(argv) -> None`. Users' mistakes are `ValueError` or `OSError`; they end in one line on
standard error and exit status 2. Anything else is a fault of ours and keeps its traceback.
Commands without Hydra read their `key=value` words by `lola_ds.config.parse_overrides`.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lola_ds.log import log_to_stderr


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the command with one line on standard error and an exit status."""
    print("lola-ds: error: " + " ".join(str(message).split()), file=sys.stderr, flush=True)
    raise SystemExit(status)


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Runs `main(argv)`; user errors end in one line, or a traceback with LOLA_DEBUG set."""
    log_to_stderr()
    try:
        main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("LOLA_DEBUG"):
            raise
        fail(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def exit_at_once(run: Callable[[], object]) -> NoReturn:
    """Ends the process with the status of `run`, without the interpreter's teardown.

    For processes of a process group: a communication thread that lets go of a Python object during
    the teardown aborts its process, though all the work is done and saved.
    """
    code = 0
    try:
        run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def make_parser(command: str, help_text: str) -> argparse.ArgumentParser:
    """A parser whose description is `help_text`; add flags to it, then call `parse_arguments`."""
    return _Parser(
        prog=f"lola-ds {command}",
        description=help_text.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"lola-ds {command} [--flags] key=value ...",
        allow_abbrev=False,
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Splits `argv` into flags known to `parser` and the remaining words, in order."""
    args, words = parser.parse_known_args(list(argv))
    for word in words:
        if word.startswith("-"):
            fail(f"unknown flag '{word}' (see {parser.prog} --help)")
    return args, words


def split_paths(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words into paths and `key=value` overrides; what exists is a path."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides
