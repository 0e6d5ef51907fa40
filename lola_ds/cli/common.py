"""What every command shares: `key=value` arguments, help, and errors in one line.

A command is a module with `HELP` (first line: summary; the rest: description and examples) and
`main(argv) -> None`. Users' mistakes are `ValueError` or `OSError`; they end in one line on
standard error and exit status 2. Anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
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


def parse_pairs(
    words: Sequence[str], defaults: dict[str, object], required: Sequence[str] = ()
) -> dict:
    """Reads `key=value` words of commands that need no model configuration.

    Arguments:
        words: the words, such as `["out=WELL", "resolution=64"]`.
        defaults: every allowed key with its default; a value is converted to the default's type
            (None and str: text; bool: true/false; int; float).
        required: the keys that must be given.

    Raises:
        ValueError: names the unknown or missing key, or the value that does not convert.
    """
    values = dict(defaults)
    seen = set()
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' is not of the form key=value")
        if key not in defaults:
            raise ValueError(f"unknown key '{key}'; known keys: {', '.join(defaults)}")
        values[key] = _convert(key, text, defaults[key])
        seen.add(key)
    missing = [key for key in required if key not in seen]
    if missing:
        raise ValueError(f"missing {', '.join(f'{key}=…' for key in missing)}")
    return values


def _convert(key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key}={text}: expected true or false")
        return text.lower() == "true"
    if isinstance(default, (int, float)):
        kind = type(default)
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{key}={text}: expected {kind.__name__}") from None
    return text
