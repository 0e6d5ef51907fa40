"""From a checkpoint to the weights of a model.

Needs neither DeepSpeed nor a process group nor the model's code: the files of a checkpoint say
which run of which parameter they hold. Tensors are read one at a time, so memory holds no more than
the largest of them, or a few where averages are combined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lola_ds.atomic_io import replacing
from lola_ds.train.checkpoint.format import AVERAGES_FILE, CheckpointReader, list_checkpoints
from lola_ds.train.checkpoint.posthoc import Snapshot, combine
from lola_ds.train.checkpoint.tensor_file import LazyTensors, TensorFile, write_tensors
from lola_ds.train.ema_profiles import POWER_LAW, PowerLaw

__all__ = [
    "WeightSelection",
    "find_checkpoint",
    "model_weights",
    "read_weights",
    "select_weights",
    "write_weights",
]

PREFIX = "model."
"""The prefix of the model's parameters in the objective."""
POINTERS = ("latest", "best")
"""Files of a run folder that name one of its checkpoints."""
_CHUNK = 2**20
"""The number of values that are combined at a time."""


def find_checkpoint(path: Path) -> CheckpointReader:
    """Opens and verifies a checkpoint.

    Arguments:
        path: A checkpoint, a run folder (its newest checkpoint is taken), or its file `best` or
            `latest`.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: The checkpoint is damaged.
    """
    folder = path
    if path.name in POINTERS and path.is_file():
        folder = path.parent / path.read_text().strip()
    elif not (path / "manifest.json").is_file():
        folders = list_checkpoints(path / "checkpoints")
        if not folders:
            raise FileNotFoundError(
                f"{path} holds no checkpoint; give a run folder, its file best, or one of its "
                "checkpoints/step_N"
            )
        folder = folders[-1]
    reader = CheckpointReader(folder)
    reader.verify()
    return reader


@dataclass(frozen=True)
class WeightSelection:
    """One set of weights of a checkpoint.

    Attributes:
        name: A description in words.
        tensors: The parameters by name, read one at a time.
    """

    name: str
    tensors: LazyTensors


def select_weights(reader: CheckpointReader, which: str = "ema") -> WeightSelection:
    """Selects the optimised weights, one of their averages, or a reconstructed average.

    Arguments:
        reader: The checkpoint.
        which: `none` for the optimised weights, `ema` for their principal average, or a number: the
            decay or the sigma_rel of an average in the checkpoint, or any other sigma_rel, which is
            reconstructed from the power-law averages that the run kept.

    Raises:
        ValueError: There is no such average and it cannot be reconstructed.
    """
    if which == "none":
        return WeightSelection("weights", reader.tensors("weight"))
    if which == "ema":
        return WeightSelection(f"average {reader.averages[0]}", reader.tensors(reader.averages[0]))
    try:
        number = float(which)
    except ValueError:
        raise ValueError(f"--ema {which} is not ema, none or a number") from None
    for kind in reader.averages:
        if float(kind.rpartition("_")[2]) == number:
            return WeightSelection(f"average {kind}", reader.tensors(kind))
    return _reconstruct(reader, PowerLaw(number))


def _reconstruct(reader: CheckpointReader, wanted: PowerLaw) -> WeightSelection:
    """The combination of kept averages whose profile is nearest to `wanted`."""
    held = f"{reader.folder} holds the averages {', '.join(reader.averages)}"
    if not 0 < wanted.sigma_rel <= PowerLaw.WIDEST:
        raise ValueError(
            f"--ema {wanted.sigma_rel}: {held}; others can only be made for a sigma_rel in "
            f"(0, {PowerLaw.WIDEST:.4f}]"
        )
    steps = reader.state["updates"]
    kept = _kept_averages(reader, steps)
    if not kept:
        raise ValueError(
            f"--ema {wanted.sigma_rel}: {held}; making others needs power-law averages: train with "
            "ema.power_law=[0.05,0.1] and ema.keep_every=…"
        )
    sources = list(kept.values())
    weights, distance = combine(list(kept), Snapshot(wanted.gamma, steps))

    def read(name: str) -> Tensor:
        out = torch.empty(math.prod(reader.shapes[name]))
        for start, part in zip(range(0, len(out), _CHUNK), out.split(_CHUNK)):
            total = torch.zeros(len(part), dtype=torch.float64)
            for weight, (source, kind) in zip(weights, sources):
                total += float(weight) * source.read(kind, name, start, len(part)).double()
            part.copy_(total)
        return out.view(reader.shapes[name])

    text = f"average sigma_rel={wanted.sigma_rel} made of {len(kept)} (profile within "
    return WeightSelection(
        f"{text}{distance:.2%})", LazyTensors(reader.tensors("weight").specs, read)
    )


def _kept_averages(
    reader: CheckpointReader, steps: int
) -> dict[Snapshot, tuple[CheckpointReader, str]]:
    """The power-law averages that a run kept up to a step, verified."""
    run, kept = reader.folder.parent.parent, {}
    for folder in (*list_checkpoints(run / "averages"), *list_checkpoints(run / "checkpoints")):
        source = CheckpointReader(folder)
        if source.state["updates"] > steps:
            continue
        source.verify([name for name in source.manifest["files"] if name.startswith(AVERAGES_FILE)])
        for kind in source.averages:
            if kind.startswith(POWER_LAW):
                gamma = PowerLaw(float(kind.removeprefix(POWER_LAW))).gamma
                kept[Snapshot(gamma, source.state["updates"])] = source, kind
    return kept


def model_weights(
    reader: CheckpointReader, selection: WeightSelection | None = None
) -> LazyTensors:
    """Returns the model's float32 parameters and its buffers by name.

    Arguments:
        reader: The checkpoint.
        selection: The parameters; by default, their principal average.
    """
    parameters, buffers = (selection or select_weights(reader)).tensors, reader.buffers()
    specs = {
        name.removeprefix(PREFIX): spec
        for name, spec in (parameters.specs | buffers.specs).items()
        if name.startswith(PREFIX)
    }

    def read(name: str) -> Tensor:
        return (parameters if PREFIX + name in parameters.specs else buffers)[PREFIX + name]

    return LazyTensors(specs, read)


def read_weights(path: Path) -> LazyTensors:
    """Returns the tensors of a safetensors file, read one at a time.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        return TensorFile(path).tensors()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """Writes a safetensors file atomically, one tensor at a time."""
    with replacing(out) as temporary:
        write_tensors(temporary, state, {"format": "pt"})
