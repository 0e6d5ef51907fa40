"""Simulates flows from random initial states and writes them as a dataset of The Well.

One file per split and combination of parameters, as in The Well:

    <out>/<physics>/data/<split>/<physics>_<parameters>.hdf5

Every trajectory has its own random generator, seeded by the seed, the dataset, the split, the
parameters and its number in the file. A larger dataset thus begins with the trajectories of a
smaller one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.synthesize.families import FAMILIES, Family
from data_prep.synthesize.well_writer import WellSpec, WellWriter, read_provenance
from lola_ds.config import SPLITS

__all__ = ["Request", "generate"]

#: The number of cells per batch. More would not be faster and take more memory.
BATCH_CELLS = 2**18


@dataclass(frozen=True)
class Request:
    """What to synthesize.

    Arguments:
        dataset: A key of `FAMILIES`.
        trajectories: The number of trajectories per split, distributed evenly over the files.
        steps: The number of states per trajectory, including the initial one.
        resolution: The number of points along the first axis, or 0 for the family's default.
        seed: The seed of the initial states.
        parameters: The values of some parameters, by name; the others have the family's defaults.

    Raises:
        ValueError: A value is not supported; the message names it.
    """

    dataset: str
    trajectories: Mapping[str, int]
    steps: int
    resolution: int = 0
    seed: int = 0
    parameters: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dataset not in FAMILIES:
            raise ValueError(f"dataset={self.dataset} is not one of {', '.join(FAMILIES)}")
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: at least 2 states are needed")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a seed must not be negative")
        for split, number in self.trajectories.items():
            if number < 1:
                raise ValueError(f"{split} split: {number} trajectories; at least 1 is needed")
        for name, values in self.parameters.items():
            if name not in self.family.parameters:
                known = ", ".join(self.family.parameters)
                raise ValueError(f"{name}: {self.dataset} has the parameters {known}")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={[*values]}: give each value once, and at least one")
        self.family.check(self.points, {**self.family.parameters, **self.parameters})

    @property
    def family(self) -> Family:
        """The family of flows."""
        return FAMILIES[self.dataset]

    @property
    def physics(self) -> str:
        """The name of the dataset and of its folder in The Well."""
        return self.family.physics

    @property
    def points(self) -> int:
        """The number of points along the first axis."""
        return self.resolution or self.family.resolution

    @property
    def combinations(self) -> list[dict[str, float]]:
        """The parameters of each file of a split."""
        values = {**self.family.parameters, **self.parameters}
        return [dict(zip(values, combination)) for combination in product(*values.values())]

    @property
    def cells(self) -> int:
        """The number of points of a state."""
        return math.prod(len(axis) for axis in self.family.grid(self.points).values())

    @property
    def times(self) -> np.ndarray:
        """The times of the T states, with shape (T,)."""
        return np.arange(self.steps) * self.family.time_step


@dataclass(frozen=True)
class _File:
    """One file of a request: `trajectories` solutions with the same split and parameters."""

    request: Request
    split: str
    parameters: Mapping[str, float]
    trajectories: int

    @property
    def cells(self) -> int:
        return self.trajectories * self.request.cells

    def path(self, out: Path) -> Path:
        physics, name = self.request.physics, self.request.family.file_name(self.parameters)
        return out / physics / "data" / self.split / name

    def provenance(self) -> str:
        """The arguments that determine the content of the file, as JSON."""
        return json.dumps(
            {
                "solver": self.request.family.solver,
                "dataset": self.request.dataset,
                "split": self.split,
                **self.parameters,
                "resolution": self.request.points,
                "trajectories": self.trajectories,
                "steps": self.request.steps,
                "seed": self.request.seed,
            }
        )

    def spec(self) -> WellSpec:
        family = self.request.family
        return WellSpec(
            dataset=family.physics,
            trajectories=self.trajectories,
            times=self.request.times,
            grid=family.grid(self.request.points),
            boundaries=family.boundaries,
            scalar_fields=family.scalar_fields,
            vector_fields=family.vector_fields,
            parameters=self.parameters,
            provenance=self.provenance(),
        )

    def generator(self, trajectory: int) -> np.random.Generator:
        """The random generator of a trajectory."""
        request = self.request
        key = (
            request.seed,
            [*FAMILIES].index(request.dataset),
            SPLITS.index(self.split),
            *request.family.key(self.parameters),
            trajectory,
        )
        return np.random.default_rng(key)


def generate(request: Request, out: Path, show_progress: bool = True) -> list[Path]:
    """Synthesizes a dataset into the folder `out`.

    Existing files that were made with the same arguments are kept; unreadable ones are made again.
    The same call thus completes an interrupted run.

    Arguments:
        request: What to synthesize.
        out: The root of The Well's folders.
        show_progress: Whether to show a progress bar, which counts states.

    Returns:
        The paths of all files of the dataset, including those that were kept.

    Raises:
        ValueError: A folder contains files of another dataset.
    """
    files = list(_list_files(request))
    _refuse_other_files(files, out)
    missing = [file for file in files if not _is_made(file, out)]

    states = request.steps * sum(file.trajectories for file in missing)
    hidden = not show_progress or not missing
    with tqdm(total=states, desc=request.physics, unit="state", disable=hidden) as progress:
        for group in _groups(missing):
            _make(group, request, out, progress)

    return [file.path(out) for file in files]


def _list_files(request: Request) -> Iterator[_File]:
    """The files of a request; the first ones get the remaining trajectories."""
    combinations = request.combinations
    for split, number in request.trajectories.items():
        share, rest = divmod(number, len(combinations))
        for i, parameters in enumerate(combinations):
            if count := share + (i < rest):
                yield _File(request, split, parameters, count)


def _refuse_other_files(files: Sequence[_File], out: Path) -> None:
    """Refuses folders with other files, since readers take all files of a folder as one dataset."""
    planned = {file.path(out) for file in files}
    for folder in sorted({path.parent for path in planned}):
        for path in sorted((*folder.glob("*.hdf5"), *folder.glob("*.h5"))):
            if path not in planned:
                raise ValueError(f"{path} is not of this dataset; remove it or choose another out=")


def _is_made(file: _File, out: Path) -> bool:
    """Whether a file exists and is complete.

    Raises:
        ValueError: The file was made with other arguments.
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
    """Describes how the arguments of an existing file differ."""
    if found is None:
        return " (not made by lola-ds synthesize)"
    theirs, ours = json.loads(found), json.loads(file.provenance())
    pairs = [f"{k}={theirs.get(k)} instead of {ours[k]}" for k in ours if theirs.get(k) != ours[k]]
    return f" ({', '.join(pairs)})"


def _groups(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Groups consecutive files that fit in one batch; a larger file is a group of its own."""
    group: list[_File] = []
    for file in files:
        full = sum(member.cells for member in group) + file.cells > BATCH_CELLS
        if group and (full or not file.request.family.mixes):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _make(group: Sequence[_File], request: Request, out: Path, progress: tqdm) -> None:
    """Solves all trajectories of some files and writes the files."""
    size = max(1, BATCH_CELLS // request.cells)
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
    """Solves a batch of trajectories and writes each state to the file of its trajectory."""
    states = request.family.solve(
        request.points,
        [file.parameters for file, _, _ in members],
        [file.generator(i) for file, _, i in members],
        request.times.tolist(),
    )
    for step, fields in enumerate(states):
        for b, (_, writer, i) in enumerate(members):
            writer.write(i, step, {name: values[b] for name, values in fields.items()})
        progress.update(len(members))
