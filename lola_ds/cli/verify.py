"""`lola-ds verify`: checks shards in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .common import make_parser, parse_arguments

HELP = """
Check shards: index against tar, every checksum, NaN.

  lola-ds verify SHARDS/<dataset>/<split> [more folders]

A folder may also hold several splits (SHARDS or SHARDS/<dataset>): all are checked. Reads every
byte; exits 0 only if all of them are what was written.

Examples:
  lola-ds verify shards/euler_multi_quadrants_periodicBC/train
  lola-ds verify shards
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    _, folders = parse_arguments(make_parser("verify", HELP), argv)
    if not folders:
        raise ValueError("which folder? Give SHARDS/<dataset>/<split>")

    from tqdm import tqdm

    from lola_ds.data import verify_split

    reports = []
    for folder in _splits(folders):
        with tqdm(unit="B", unit_scale=True, desc=str(folder)) as bar:
            report = verify_split(folder, bar.update)
        index = report.index
        for problem in report.problems:
            print(problem)
        if not report.problems:
            print(f"{folder}: sound ({len(index)} trajectories, {len(index.checksums)} frames)")
        reports.append(report)
    for report in reports:
        report.check()


def _splits(folders: Sequence[str]) -> list[Path]:
    """The splits in the folders given: themselves, or those below them."""
    from lola_ds.data.format import INDEX

    splits = []
    for name in folders:
        below = sorted(path.parent for path in Path(name).rglob(INDEX))
        splits += below or [Path(name)]
    return [path for path in splits if not any(part.endswith(".partial") for part in path.parts)]
