"""`lola-ds report`: folders of results -> one HTML page that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments, parse_pairs

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

_DEFAULTS: dict[str, object] = {"out": "report.html", "title": "Evaluation report"}


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("report", HELP), argv)
    pairs = [word for word in words if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in words if word not in pairs]
    keys = parse_pairs(pairs, _DEFAULTS)
    if not folders:
        raise ValueError("no results given; name the out= folders of `lola-ds eval`")
    out = Path(keys["out"])
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; name a page, such as out={out / 'report.html'}")

    from lola_ds.evaluate.report import write_report

    names = write_report(folders, out, keys["title"])
    print(f"{out}: {', '.join(names)} ({out.stat().st_size / 1e6:.1f} MB)")
