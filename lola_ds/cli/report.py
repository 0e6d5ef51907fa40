"""`lola-ds report`: folders of results -> one HTML page that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments, split_paths
from lola_ds.config import parse_overrides

HELP = """\
Writes one static page that compares any number of evaluations.

Configuration differences, parameters, training curves, tables (best in bold, sortable), figures and
animations, all held in the one file: it works from file://, without a network, light and dark, and
with the keyboard.

words:
  RESULTS…           folders of `lola-ds eval`, or folders of such folders

keys:
  out=report.html    the page
  title=…            its title

examples:
  lola-ds report results/sm results/dm out=report.html
  lola-ds report results title="Surrogate and diffusion on Euler flows"
"""


@dataclass
class Options:
    """The keys of the command."""

    out: str = "report.html"
    title: str = "Evaluation report"


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("report", HELP), argv)
    folders, overrides = split_paths(words)
    options = parse_overrides(Options, overrides)
    if not folders:
        raise ValueError("no results given; name the out= folders of `lola-ds eval`")
    out = Path(options.out)
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; name a page, such as out={out / 'report.html'}")

    from lola_ds.evaluate.report import write_report

    names = write_report([Path(folder) for folder in folders], out, options.title)
    print(f"{out}: {', '.join(names)} ({out.stat().st_size / 1e6:.1f} MB)")
