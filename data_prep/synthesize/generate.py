"""Solving the Euler equations from random initial states, and writing a Well dataset.

One file per split and ratio of specific heats γ, as in The Well:

    <out>/<physics>/data/<split>/<physics>_gamma_<γ>_<gas>.hdf5

Every trajectory has its own random generator, made of the seed, the dataset, the split, γ and its
number in the file; so a larger dataset begins with the trajectories of a smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.synthesize.euler import EulerSolver, primitive
from data_prep.synthesize.initial import multi_quadrants
from data_prep.synthesize.well_writer import WellSpec, WellWriter, read_provenance

#: The datasets that can be synthesized: The Well's name, and whether the box is periodic.
DATASETS = {
    "euler_periodic": ("euler_multi_quadrants_periodicBC", True),
    "euler_open": ("euler_multi_quadrants_openBC", False),
}

#: The gases of The Well by γ, as its file names call them (formula and temperature in °C).
GASES = {
    1.13: "C3H8_16",
    1.22: "C2H6_15",
    1.3: "CO2_20",
    1.33: "H2O_20",
    1.365: "Dry_air_1000",
    1.4: "Dry_air_20",
    1.404: "H2_100_Dry_air_-15",
    1.453: "H2_-76",
    1.597: "H2_-181",
    1.76: "Ar_-180",
}

#: The gases that are synthesized unless others are asked for.
GAMMAS = (1.22, 1.33, 1.4, 1.76)

SPLITS = ("train", "valid", "test")

#: The time between two states, that of The Well.
TIME_STEP = 0.015

#: How many cells are solved in one batch; more would only cost memory.
BATCH_CELLS = 2**18

#: Changes whenever the same arguments give other values.
VERSION = 1


@dataclass(frozen=True)
class Request:
    """What to synthesize.

    Arguments:
        dataset: a key of `DATASETS`.
        resolution: the number of cells along each axis of the unit square.
        trajectories: the number of trajectories per split, shared evenly between the gases.
        steps: the number of states per trajectory, the initial one included.
        seed: the seed of the initial states.
        gammas: the gases, keys of `GASES`.
    """

    dataset: str
    resolution: int
    trajectories: Mapping[str, int]
    steps: int
    seed: int = 0
    gammas: Sequence[float] = GAMMAS

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset={self.dataset} is not one of {', '.join(DATASETS)}")
        if self.resolution < 4:
            raise ValueError(f"resolution={self.resolution}: at least 4 cells are needed")
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: at least 2 states are needed")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a seed is not negative")
        for split, number in self.trajectories.items():
            if number < 1:
                raise ValueError(f"{split} split: {number} trajectories; at least 1 is needed")
        for gamma in self.gammas:
            if gamma not in GASES:
                known = ", ".join(map(str, GASES))
                raise ValueError(f"gammas: {gamma} is none of The Well's gases: {known}")
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise ValueError(f"gammas={[*self.gammas]}: give each gas once, and at least one")

    @property
    def physics(self) -> str:
        """The dataset's name in The Well, which is also its folder's."""
        return DATASETS[self.dataset][0]

    @property
    def periodic(self) -> bool:
        return DATASETS[self.dataset][1]


@dataclass(frozen=True)
class _File:
    """One file of a request: `trajectories` solutions with the same split and γ."""

    request: Request
    split: str
    gamma: float
    trajectories: int

    @property
    def name(self) -> str:
        return f"{self.request.physics}_gamma_{self.gamma}_{GASES[self.gamma]}.hdf5"

    @property
    def cells(self) -> int:
        return self.trajectories * self.request.resolution**2

    def path(self, out: Path) -> Path:
        return out / self.request.physics / "data" / self.split / self.name

    def provenance(self) -> str:
        """The arguments that the file's content depends on, as JSON."""
        return json.dumps(
            {
                "solver": f"lola_ds MUSCL-HLLC {VERSION}",
                "dataset": self.request.dataset,
                "split": self.split,
                "gamma": self.gamma,
                "resolution": self.request.resolution,
                "trajectories": self.trajectories,
                "steps": self.request.steps,
                "seed": self.request.seed,
            }
        )

    def spec(self) -> WellSpec:
        centres = (np.arange(self.request.resolution) + 0.5) / self.request.resolution
        boundary = "PERIODIC" if self.request.periodic else "OPEN"
        return WellSpec(
            dataset=self.request.physics,
            trajectories=self.trajectories,
            times=np.arange(self.request.steps) * TIME_STEP,
            grid={"x": centres, "y": centres},
            boundaries={"x": boundary, "y": boundary},
            scalar_fields=("energy", "density", "pressure"),
            vector_fields=("momentum",),
            parameters={"gamma": self.gamma},
            provenance=self.provenance(),
        )

    def initial_state(self, trajectory: int) -> Tensor:
        """The conserved variables of a trajectory's initial state, of shape (4, X, Y)."""
        request = self.request
        key = (
            request.seed,
            [*DATASETS].index(request.dataset),
            SPLITS.index(self.split),
            round(1000 * self.gamma),
            trajectory,
        )
        U = multi_quadrants(
            np.random.default_rng(key),
            (request.resolution, request.resolution),
            (request.periodic, request.periodic),
            self.gamma,
        )
        return torch.from_numpy(U).float()


def generate(request: Request, out: Path, show_progress: bool = True) -> list[Path]:
    """Synthesizes a dataset into the folder `out`.

    Files that are there already, made with the same arguments, are kept; unreadable ones are made
    again. So an interrupted run is completed by the same call.

    Arguments:
        request: what to synthesize.
        out: the root of The Well's folders.
        show_progress: whether to draw a progress bar, in states.

    Returns:
        The paths of all files of the dataset, those that were kept included.

    Raises:
        ValueError: if a folder holds files that this call would not make.
    """
    files = list(_plan(request))
    _refuse_strangers(files, out)
    missing = [file for file in files if not _is_made(file, out)]

    states = request.steps * sum(file.trajectories for file in missing)
    hidden = not show_progress or not missing
    with tqdm(total=states, desc=request.physics, unit="state", disable=hidden) as progress:
        for group in _groups(missing):
            _make(group, request, out, progress)

    return [file.path(out) for file in files]


def _plan(request: Request) -> Iterator[_File]:
    """The files of a request; the first gases get one trajectory more if there is a remainder."""
    for split, number in request.trajectories.items():
        share, rest = divmod(number, len(request.gammas))
        for i, gamma in enumerate(request.gammas):
            if count := share + (i < rest):
                yield _File(request, split, gamma, count)


def _refuse_strangers(files: Sequence[_File], out: Path) -> None:
    """Refuses folders with other data: readers take all files of a folder as one dataset."""
    planned = {file.path(out) for file in files}
    for folder in sorted({path.parent for path in planned}):
        for path in sorted((*folder.glob("*.hdf5"), *folder.glob("*.h5"))):
            if path not in planned:
                raise ValueError(f"{path} is not of this dataset; remove it or choose another out=")


def _is_made(file: _File, out: Path) -> bool:
    """Whether a file exists, complete.

    Raises:
        ValueError: if it was made otherwise.
    """
    path = file.path(out)
    if not path.exists():
        return False
    try:
        found = read_provenance(path)
    except OSError:
        tqdm.write(f"{path} is unreadable and will be made again")
        return False
    if found == file.provenance():
        return True
    raise ValueError(
        f"{path} exists with other content{_difference(file, found)}; "
        "remove it or choose another out="
    )


def _difference(file: _File, found: str | None) -> str:
    """Which arguments an existing file was made with, where they differ."""
    if found is None:
        return " (not synthesized here)"
    theirs, ours = json.loads(found), json.loads(file.provenance())
    pairs = [f"{k}={theirs.get(k)} instead of {ours[k]}" for k in ours if theirs.get(k) != ours[k]]
    return f" ({', '.join(pairs)})"


def _groups(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Consecutive files that fit one batch together; a larger file is a group of its own."""
    group: list[_File] = []
    for file in files:
        if group and sum(member.cells for member in group) + file.cells > BATCH_CELLS:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _make(group: Sequence[_File], request: Request, out: Path, progress: tqdm) -> None:
    """Solves all trajectories of some files, and writes these."""
    size = max(1, BATCH_CELLS // request.resolution**2)
    with ExitStack() as stack:
        members = []
        for file in group:
            writer = stack.enter_context(WellWriter(file.path(out), file.spec()))
            members += [(file, writer, i) for i in range(file.trajectories)]
        for start in range(0, len(members), size):
            _solve(members[start : start + size], request, progress)


def _solve(
    members: Sequence[tuple[_File, WellWriter, int]], request: Request, progress: tqdm
) -> None:
    """Solves a batch of trajectories, and writes each state to its trajectory's file."""
    solver = EulerSolver(
        spacing=(1 / request.resolution, 1 / request.resolution),
        periodic=(request.periodic, request.periodic),
    )
    U = torch.stack([file.initial_state(i) for file, _, i in members])
    gamma = torch.tensor([file.gamma for file, _, _ in members])
    times = [TIME_STEP * step for step in range(request.steps)]

    for step, state in enumerate(solver.evolve(U, gamma, times)):
        fields = _fields(state, gamma)
        for b, (_, writer, i) in enumerate(members):
            writer.write(i, step, {name: values[b] for name, values in fields.items()})
        progress.update(len(members))


def _fields(U: Tensor, gamma: Tensor) -> dict[str, np.ndarray]:
    """The Well's fields of conserved variables (B, D + 2, *S): (B, *S), and (B, *S, D) vectors."""
    return {
        "energy": U[:, -1].numpy(),
        "density": U[:, 0].numpy(),
        "pressure": primitive(U, gamma)[:, -1].numpy(),
        "momentum": U[:, 1:-1].movedim(1, -1).numpy(),
    }
