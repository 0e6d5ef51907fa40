"""`lola-ds synthesize`: solve small flows and write The Well's HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.config import parse_overrides, setting

HELP = """\
Solves small flows from random states, writes The Well's HDF5.

Files go to OUT/<dataset>/data/{train,valid,test}, one per combination of parameters, as The Well's
own do. The same command again keeps the files that are complete and makes the others. The default
sizes take a processor core about half a minute (euler), one and a half (rayleigh_benard) and seven
(gravity_cooling; at resolution=16 half a minute).

keys:
  dataset=…        required:
                   euler_periodic, euler_open   2-d gas in the unit square (multi-quadrants)
                   rayleigh_benard              2-d convection between walls, 4 wide, 1 high
                   gravity_cooling              3-d gas that cools and attracts itself
  out=…            root folder of The Well's datasets (required)
  resolution=…     points along x: 64, 128 (and a quarter of it along y), 32 by default
  trajectories=32  trajectories of the training split, shared between the parameters
  valid=0, test=0  trajectories of the other splits; 0: a quarter of `trajectories`, at least 4
  steps=33         states per trajectory, the initial one included
  seed=0           seed of the initial states

parameters, each one or several values:
  gammas=1.22,1.33,1.4,1.76    euler: ratios of specific heats, among The Well's ten gases
  rayleigh=1e5,1e6             rayleigh_benard: Rayleigh numbers (a layer of air rests below 1708)
  prandtl=0.5,1                rayleigh_benard: Prandtl numbers
  rho0=0.445,44.5              gravity_cooling: hydrogen nuclei per cm³
  metallicity=0,1              gravity_cooling: strength of cooling, Z, in the Sun's
  temperature=100              gravity_cooling: initial temperature T0 in kelvin

examples:
  lola-ds synthesize dataset=euler_periodic out=WELL
  lola-ds synthesize dataset=euler_open out=WELL resolution=128 trajectories=100 steps=101
  lola-ds synthesize dataset=rayleigh_benard out=WELL trajectories=16 steps=65 rayleigh=1e6
  lola-ds synthesize dataset=gravity_cooling out=WELL resolution=16 trajectories=8
"""

#: The parameters of The Well's files behind the keys.
PARAMETERS = {
    "gammas": "gamma",
    "rayleigh": "Rayleigh",
    "prandtl": "Prandtl",
    "rho0": "rho0",
    "metallicity": "Z",
    "temperature": "T0",
}


@dataclass
class Options:
    """The keys of the command."""

    dataset: str = setting()
    out: str = setting()
    resolution: int = 0
    trajectories: int = 32
    valid: int = 0
    test: int = 0
    steps: int = 33
    seed: int = 0
    gammas: list[float] | None = None
    rayleigh: list[float] | None = None
    prandtl: list[float] | None = None
    rho0: list[float] | None = None
    metallicity: list[float] | None = None
    temperature: list[float] | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("synthesize", HELP), argv)
    options = parse_overrides(Options, words)
    parameters = {name: getattr(options, key) for key, name in PARAMETERS.items()}

    from data_prep.synthesize.generate import Request, generate

    quarter = max(4, options.trajectories // 4)
    request = Request(
        dataset=options.dataset,
        resolution=options.resolution,
        trajectories={
            "train": options.trajectories,
            "valid": options.valid or quarter,
            "test": options.test or quarter,
        },
        steps=options.steps,
        seed=options.seed,
        parameters={name: tuple(values) for name, values in parameters.items() if values},
    )
    paths = generate(request, Path(options.out))
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} files, {total / 1e6:.0f} MB in {Path(options.out) / request.physics}")
