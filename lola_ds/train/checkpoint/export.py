"""From a checkpoint to plain weights: `model.safetensors`, `config.yaml` beside it.

Needs neither DeepSpeed nor a process group nor the model's code: a checkpoint's files say which
run of which parameter they hold. Tensors are read when they are asked for, so memory holds no more
than the largest of them, or a few where averages are combined.
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

PREFIX = "model."
"""What the objective puts before the model's parameter names."""
_PART = 2**20
"""Values that are combined at a time."""
POINTERS = ("latest", "best")
"""Files of a run folder that name one of its checkpoints."""


def find_checkpoint(path: Path) -> CheckpointReader:
    """The checkpoint at `path`, verified: a checkpoint, a run folder (its newest), or `RUN/best`.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged.
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
class Choice:
    """One set of weights of a checkpoint.

    Attributes:
        name: which, for people.
        tensors: the parameters by name, read when asked for.
    """

    name: str
    tensors: LazyTensors


def choose(reader: CheckpointReader, which: str = "ema") -> Choice:
    """Chooses the weights, one of their averages, or one that no one kept.

    Arguments:
        reader: the checkpoint.
        which: `none` for the weights as they were optimised, `ema` for their principal average,
            or a number: the decay or the sigma_rel of an average in the checkpoint, or any
            sigma_rel, which is then made of the power-law averages that the run kept.

    Raises:
        ValueError: there is no such average and it cannot be made.
    """
    if which == "none":
        return Choice("weights", reader.tensors("weight"))
    if which == "ema":
        return Choice(f"average {reader.averages[0]}", reader.tensors(reader.averages[0]))
    try:
        number = float(which)
    except ValueError:
        raise ValueError(f"--ema {which} is not ema, none or a number") from None
    for kind in reader.averages:
        if float(kind.rpartition("_")[2]) == number:
            return Choice(f"average {kind}", reader.tensors(kind))
    return _reconstruct(reader, PowerLaw(number))


def _reconstruct(reader: CheckpointReader, wanted: PowerLaw) -> Choice:
    """The average that comes nearest to `wanted` at the step of `reader`."""
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
        for start, part in zip(range(0, len(out), _PART), out.split(_PART)):
            total = torch.zeros(len(part), dtype=torch.float64)
            for weight, (source, kind) in zip(weights, sources):
                total += float(weight) * source.read(kind, name, start, len(part)).double()
            part.copy_(total)
        return out.view(reader.shapes[name])

    text = f"average sigma_rel={wanted.sigma_rel} made of {len(kept)} (profile within "
    return Choice(f"{text}{distance:.2%})", LazyTensors(reader.tensors("weight").specs, read))


def _kept_averages(
    reader: CheckpointReader, steps: int
) -> dict[Snapshot, tuple[CheckpointReader, str]]:
    """The power-law averages of a run until a number of optimizer steps, verified."""
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


def model_weights(reader: CheckpointReader, choice: Choice | None = None) -> LazyTensors:
    """The model's float32 parameters and its buffers, by their own names.

    Arguments:
        reader: the checkpoint.
        choice: which parameters; by default their principal average.
    """
    parameters, buffers = (choice or choose(reader)).tensors, reader.buffers()
    specs = {
        name.removeprefix(PREFIX): spec
        for name, spec in (parameters.specs | buffers.specs).items()
        if name.startswith(PREFIX)
    }

    def read(name: str) -> Tensor:
        return (parameters if PREFIX + name in parameters.specs else buffers)[PREFIX + name]

    return LazyTensors(specs, read)


def read_weights(path: Path) -> LazyTensors:
    """The tensors of a safetensors file, read when asked for.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return TensorFile(path).tensors()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """Writes `out` (a safetensors file) atomically, tensor after tensor."""
    with replacing(out) as temporary:
        write_tensors(temporary, state, {"format": "pt"})
