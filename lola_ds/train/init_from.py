"""Starting from the weights of another model, whole or in part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lola_ds.train.checkpoint.format import explain_mismatch

__all__ = ["InitReport", "init_from"]


@dataclass(frozen=True)
class InitReport:
    """Which weights of another model were copied.

    Attributes:
        source: The folder of the other model.
        loaded: The names of the copied tensors.
        skipped: The names of the tensors that do not fit, with the reason.
        left: The names of the model's tensors that keep their initial values.
    """

    source: str
    loaded: tuple[str, ...]
    skipped: dict[str, str]
    left: tuple[str, ...]

    def summary(self) -> str:
        """Returns the numbers of tensors in one line."""
        return (
            f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.skipped)} skipped, "
            f"{len(self.left)} left at their initial values"
        )

    def report(self) -> str:
        """Returns the summary and a line for each tensor."""
        lines = [self.summary()]
        lines += [f"loaded  {name}" for name in self.loaded]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"left    {name}" for name in self.left]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def init_from(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, strict: bool
) -> InitReport:
    """Copies weights into a model by their names.

    Arguments:
        model: The model, on any device.
        weights: The parameters and buffers by name.
        source: The folder of the other model, for messages.
        strict: Whether all names and shapes must be the model's. Otherwise, tensors that do not fit
            are skipped.

    Raises:
        CheckpointError: A name or a shape differs, and `strict` is set.
        ValueError: No tensor fits.
    """
    own = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if strict:
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        explain_mismatch(source, found, shapes)
    skipped = {}
    for name, tensor in weights.items():
        if name not in shapes:
            skipped[name] = "the model has no such tensor"
        elif shapes[name] != tuple(tensor.shape):
            skipped[name] = f"its shape is {tuple(tensor.shape)}, the model's {shapes[name]}"
    loaded = tuple(name for name in weights if name not in skipped)
    if not any(own[name].ndim for name in loaded):  # constants of layers fit everywhere
        raise ValueError(f"fork.run={source} shares no weights with this model")
    for name in loaded:
        own[name].copy_(weights[name])
    left = tuple(name for name in own if name not in weights or name in skipped)
    return InitReport(source, loaded, skipped, left)
