"""`lola-ds synthesize`: solve the Euler equations and write The Well's HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments, parse_pairs

HELP = """\
Solve the 2-d Euler equations and write The Well's HDF5.

Random multi-quadrant initial states in the unit square, several gases, states every 0.015 units of
time, written to OUT/<dataset>/data/{train,valid,test} as The Well's own files are. The same command
again keeps the files that are complete and makes the others.

keys:
  dataset=…        euler_periodic or euler_open (required)
  out=…            root folder of The Well's datasets (required)
  resolution=64    cells along each axis
  trajectories=32  trajectories of the training split, shared between the gases
  valid=0, test=0  trajectories of the other splits; 0: a quarter of `trajectories`, at least 4
  steps=33         states per trajectory, the initial one included
  seed=0           seed of the initial states
  gammas=1.22,…    ratios of specific heats, among The Well's ten gases

examples:
  lola-ds synthesize dataset=euler_periodic out=WELL
  lola-ds synthesize dataset=euler_open out=WELL resolution=128 trajectories=100 steps=101
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("synthesize", HELP), argv)
    keys = parse_pairs(
        words,
        defaults={
            "dataset": None,
            "out": None,
            "resolution": 64,
            "trajectories": 32,
            "valid": 0,
            "test": 0,
            "steps": 33,
            "seed": 0,
            "gammas": "1.22,1.33,1.4,1.76",
        },
        required=("dataset", "out"),
    )

    from data_prep.synthesize.generate import Request, generate

    quarter = max(4, keys["trajectories"] // 4)
    request = Request(
        dataset=keys["dataset"],
        resolution=keys["resolution"],
        trajectories={
            "train": keys["trajectories"],
            "valid": keys["valid"] or quarter,
            "test": keys["test"] or quarter,
        },
        steps=keys["steps"],
        seed=keys["seed"],
        gammas=_parse_gammas(keys["gammas"]),
    )
    paths = generate(request, Path(keys["out"]))
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} files, {total / 1e6:.0f} MB in {Path(keys['out']) / request.physics}")


def _parse_gammas(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"gammas={text}: expected numbers separated by commas") from None
