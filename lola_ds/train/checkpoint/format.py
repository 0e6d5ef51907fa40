"""The format of checkpoints: verified on load, independent of ZeRO stage and world size.

A checkpoint is a folder `step_N` with two safetensors files per rank, `state.json` (progress) and
`manifest.json` (size and XXH3-64 of every file). The files of a rank hold its partitions
(`lola_ds.train.zero.partitions`) as flat float32 runs under `kind/name`: `rank_R` has the kind
`weight` and those of the optimizer, such as `exp_avg`; `averages_R` has one kind for each moving
average, such as `ema_0.999`. Whoever needs a parameter, or any run of it, reads it from the files
that hold it. So a run resumes at any stage and world size, and export needs neither DeepSpeed nor a
process group. The states of optimizers of whole tensors, which have shapes and types of their own,
lie with their owner as `state/name/i`; the header says how they fit together. A folder of averages
alone (`lola_ds.train.checkpoint.store`) has the same format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lola_ds.train.checkpoint.packing import unpack
from lola_ds.train.checkpoint.tensor_file import LazyTensors, Spec, TensorFile

PARTITIONS, OPTIMIZER, STATES, AVERAGES = "fragments", "optimizer", "states", "averages"
AVERAGES_FILE = "averages"
"""The prefix of the names of files that hold moving averages."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit the model."""


@dataclass(frozen=True)
class _Run:
    """A contiguous part of a flattened tensor and the file that holds it."""

    start: int
    numel: int
    file: TensorFile


class CheckpointReader:
    """Reads parameters, averages and optimizer states of one checkpoint folder.

    Attributes:
        state: progress, as `CheckpointStore.save` was given it.
        shapes: the shape of each parameter.
        averages: the kinds that are moving averages, the principal one first.
        optimizer: the name of the optimizer.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = _read_json(folder / "state.json")
        self.manifest: dict[str, Any] = _read_json(folder / "manifest.json")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.averages: list[str] = []
        self.optimizer = "adamw"
        self._runs: dict[tuple[str, str], list[_Run]] = {}
        self._states: dict[str, tuple[TensorFile, Any]] = {}
        self._buffers: dict[str, TensorFile] = {}
        for name in sorted(self.manifest["files"]):
            if name.endswith(".safetensors"):
                self._index(folder / name)
        if not self.averages:
            raise CheckpointError(
                f"{folder} names no moving averages: an earlier version of lola_ds wrote it; "
                "convert it with that version"
            )

    def _index(self, path: Path) -> None:
        try:
            file = TensorFile(path)
            metadata = {key: json.loads(text) for key, text in file.metadata.items()}
            partitions = metadata[PARTITIONS]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self.optimizer = metadata.get(OPTIMIZER, self.optimizer)
        self.averages = metadata.get(AVERAGES, self.averages)
        states = metadata.get(STATES, {})
        self._states |= {name: (file, state) for name, state in states.items()}
        self.shapes |= {name: tuple(shape) for name, (shape, _, _) in partitions.items()}
        for key in file.specs:
            kind, _, name = key.partition("/")
            if kind == "buffer":
                self._buffers[name] = file
            elif kind != "state":
                _, start, numel = partitions[name]
                self._runs.setdefault((kind, name), []).append(_Run(start, numel, file))

    @property
    def moments(self) -> list[str]:
        """The kinds that are optimizer states."""
        return sorted({kind for kind, _ in self._runs} - {"weight", *self.averages})

    def verify(self, files: Sequence[str] | None = None) -> None:
        """Compares the files (all by default) with the manifest.

        Raises:
            CheckpointError: names the file whose size or checksum differs.
        """
        for name in self.manifest["files"] if files is None else files:
            expected = self.manifest["files"][name]
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            if digest(path) != expected:
                raise CheckpointError(f"{path} is damaged: its size or checksum has changed")

    def read(self, kind: str, name: str, start: int = 0, numel: int | None = None) -> Tensor:
        """Reads a part of a flattened tensor.

        Arguments:
            kind: `weight`, or the kind of an average or optimizer state.
            name: The name of the parameter.
            start: The first element.
            numel: The number of elements; by default, all that follow.

        Returns:
            The elements in float32, with shape (numel,).

        Raises:
            CheckpointError: Not all of them were saved.
        """
        numel = math.prod(self.shapes[name]) - start if numel is None else numel
        out = torch.empty(numel)
        filled = 0
        for run in self._runs.get((kind, name), ()):
            low, high = max(start, run.start), min(start + numel, run.start + run.numel)
            if low < high:
                part = out[low - start : high - start]
                run.file.read_run(f"{kind}/{name}", low - run.start, part)
                filled += high - low
        if filled != numel:
            raise CheckpointError(
                f"{self.folder} holds only {filled} of {numel} values of {kind}/{name}"
            )
        return out

    def tensors(self, kind: str) -> LazyTensors:
        """Returns the tensors of a kind, in the shapes of their parameters, read one at a time."""
        specs = {name: Spec(torch.float32, shape) for name, shape in self.shapes.items()}
        return LazyTensors(specs, lambda name: self.read(kind, name).view(self.shapes[name]))

    def optimizer_state(self, name: str, device: torch.device) -> Any:
        """Reads the state that an owner-sharded optimizer keeps of a parameter.

        Raises:
            CheckpointError: No state was saved.
        """
        if name not in self._states:
            raise CheckpointError(f"{self.folder} holds no optimizer state of {name}")
        file, (structure, count) = self._states[name]
        tensors = [file.read(state_key(name, i)).to(device) for i in range(count)]
        return unpack(structure, tensors)

    def buffers(self) -> LazyTensors:
        """Returns the persistent buffers, which the first rank saved."""
        specs = {name: file.specs[f"buffer/{name}"] for name, file in self._buffers.items()}
        return LazyTensors(specs, lambda name: self._buffers[name].read(f"buffer/{name}"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the complete checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def explain_mismatch(
    source: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that names and shapes of weights are the model's.

    Arguments:
        source: The origin of the weights, for messages.
        found: The shapes of the weights by name.
        expected: The shapes of the model's tensors by name.

    Raises:
        CheckpointError: A name or a shape differs.
    """
    faults = []
    if missing := sorted(set(expected) - set(found)):
        faults.append(f"{len(missing)} parameters are missing, such as {missing[0]}")
    if extra := sorted(set(found) - set(expected)):
        faults.append(f"{len(extra)} are unknown, such as {extra[0]}")
    shared = sorted(set(found) & set(expected))
    if wrong := [n for n in shared if tuple(found[n]) != tuple(expected[n])]:
        name = wrong[0]
        faults.append(
            f"{len(wrong)} have another shape, such as {name}: {tuple(found[name])} instead of "
            f"{tuple(expected[name])}"
        )
    if faults:
        raise CheckpointError(
            f"{source} is of another architecture: {'; '.join(faults)}; "
            "use another run folder or the configuration it was trained with"
        )


def digest(path: Path) -> dict[str, Any]:
    """Returns the size and the XXH3-64 of a file."""
    from lola_ds.data.native import XXH3  # converted models have no checksums to verify

    hasher = XXH3()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return {"bytes": path.stat().st_size, "xxh3": hasher.hexdigest()}


def state_key(name: str, i: int) -> str:
    return f"state/{name}/{i}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
