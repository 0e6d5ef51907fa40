"""`lola-ds inspect`: what a split of shards holds: a table, and a picture of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments, split_paths
from lola_ds.config import parse_overrides, setting

HELP = """
Shows what a split of shards holds: a table and a picture.

  lola-ds inspect SHARDS/<dataset>/<split> [trajectory=0] [out=picture.png]

The table comes from the index alone: trajectories and frames, grid, times, scalars, boundaries, and
the statistics of each field that were gathered while writing. With out=FILE.png, one trajectory's
fields are drawn at a few times (a cut through the middle in 3-d).

  trajectory=0   which one
  out=FILE       the picture; none by default
  times=5        how many times, spread evenly from the first frame to the last
  fields=…       names of the fields to draw, separated by commas; the first eight by default

Examples:
  lola-ds inspect shards/euler_multi_quadrants_periodicBC/train
  lola-ds inspect shards/rayleigh_benard/valid trajectory=3 out=picture.png times=4
"""

MOST_FIELDS = 8
"""How many fields are drawn unless some are named; latents have many."""


@dataclass
class Options:
    """The keys of the command."""

    trajectory: int = 0
    out: str | None = None
    times: int = setting(5, least=1)
    fields: list[str] | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    _, words = parse_arguments(make_parser("inspect", HELP), argv)
    folders, overrides = split_paths(words)
    options = parse_overrides(Options, overrides)
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} folders given, one is needed: SHARDS/<dataset>/<split>")

    from lola_ds.data import ShardDataset
    from lola_ds.data.describe import describe, statistics_table

    dataset = ShardDataset(folders[0])
    if not 0 <= options.trajectory < dataset.trajectories:
        raise ValueError(
            f"trajectory={options.trajectory}: {folders[0]} has the trajectories 0 to "
            f"{dataset.trajectories - 1}"
        )
    index = dataset.indexes[0]
    print("\n".join(f"{name:<13} {text}" for name, text in describe(index)))
    print(statistics_table(index))
    if options.out:
        from lola_ds.evaluate.plots.trajectory import draw_trajectory

        chosen = _choose_fields(dataset.fields, options.fields)
        draw_trajectory(dataset, options.trajectory, options.times, chosen, Path(options.out))
        print(f"wrote {options.out}")


def _choose_fields(fields: Sequence[str], names: Sequence[str] | None) -> list[int]:
    """The channels of the fields with these names; the first ones by default."""
    if names is None:
        return list(range(len(fields)))[:MOST_FIELDS]
    for name in names:
        if name not in fields:
            raise ValueError(f"fields={name}: not among {', '.join(fields)}")
    return [fields.index(name) for name in names]
