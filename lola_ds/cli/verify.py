"""`lola-ds verify`: checks shards in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments

HELP = """
Checks shards: index, checksums, shapes, NaN; repairs an index.

  lola-ds verify SHARDS/<dataset>/<split> [more folders]

A folder may also hold several splits (SHARDS or SHARDS/<dataset>): all are checked. Reads every
byte; exits 0 only if all of them are what was written.

  --repair   make the index again from the tars where it is lost (or damaged: remove it first); what
             the bytes are then is taken for right

Examples:
  lola-ds verify shards/euler_multi_quadrants_periodicBC/train
  lola-ds verify shards
  lola-ds verify --repair shards/rayleigh_benard/train
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("verify", HELP)
    parser.add_argument("--repair", action="store_true")
    args, folders = parse_arguments(parser, argv)
    if not folders:
        raise ValueError("which folder? Give SHARDS/<dataset>/<split>")

    from tqdm import tqdm

    from lola_ds.data import repair_index, verify_split

    for folder in _lost(folders) if args.repair else ():
        with tqdm(unit="B", unit_scale=True, desc=f"{folder}: index") as bar:
            index = repair_index(folder, bar.update)
        print(f"{folder}: index made again ({len(index)} trajectories)")
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


def _lost(folders: Sequence[str]) -> list[Path]:
    """Folders with shards and without an index."""
    from lola_ds.data.format import INDEX

    found = {path.parent for name in folders for path in Path(name).rglob("*.tar")}
    visible = [path for path in found if not any(p.endswith(".partial") for p in path.parts)]
    return sorted(path for path in visible if not (path / INDEX).exists())


def _splits(folders: Sequence[str]) -> list[Path]:
    """The splits in the folders given: themselves, or those below them."""
    from lola_ds.data.format import INDEX

    splits = []
    for name in folders:
        below = sorted(path.parent for path in Path(name).rglob(INDEX))
        splits += below or [Path(name)]
    return [path for path in splits if not any(part.endswith(".partial") for part in path.parts)]
