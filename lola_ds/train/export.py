"""From a checkpoint to plain weights: `model.safetensors`, `config.yaml` beside it.

Needs neither DeepSpeed nor a process group nor the model's code: a checkpoint's files say which
run of which parameter they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint import CheckpointReader, list_checkpoints

PREFIX = "model."
"""What the objective puts before the model's parameter names."""


def find_checkpoint(path: Path) -> CheckpointReader:
    """The checkpoint at `path`, or the newest of the run folder `path`, verified.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged.
    """
    if (path / "manifest.json").is_file():
        folder = path
    else:
        folders = list_checkpoints(path / "checkpoints")
        if not folders:
            raise FileNotFoundError(
                f"{path} holds no checkpoint; give a run folder, or one of its checkpoints/step_N"
            )
        folder = folders[-1]
    reader = CheckpointReader(folder)
    reader.verify()
    return reader


def model_weights(reader: CheckpointReader, ema: bool) -> dict[str, Tensor]:
    """The model's float32 parameters (or their average) and buffers, by their own names."""
    state = dict(reader.tensors("ema" if ema else "weight")) | dict(reader.buffers())
    return {
        name.removeprefix(PREFIX): tensor.contiguous()
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """Writes `out` (a safetensors file) atomically."""
    temporary = out.with_name(f".{out.name}.partial")
    save_file({n: t.contiguous() for n, t in state.items()}, temporary, metadata={"format": "pt"})
    temporary.replace(out)
