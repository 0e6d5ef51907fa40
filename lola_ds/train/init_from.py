"""Starting from the weights of another model, whole or in part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lola_ds.train.checkpoint.format import explain_mismatch


@dataclass(frozen=True)
class Graft:
    """What became of the weights of another model.

    Attributes:
        source: where they came from.
        loaded: names of the tensors that were taken over.
        skipped: of those that were not, with the reason.
        left: of the model's own tensors that keep their initial values.
    """

    source: str
    loaded: tuple[str, ...]
    skipped: dict[str, str]
    left: tuple[str, ...]

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.skipped)} skipped, "
            f"{len(self.left)} left at their initial values"
        )

    def report(self) -> str:
        """Every tensor by name, a line each."""
        lines = [self.summary()]
        lines += [f"loaded  {name}" for name in self.loaded]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"left    {name}" for name in self.left]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def graft(model: nn.Module, weights: Mapping[str, Tensor], source: str, strict: bool) -> Graft:
    """Copies weights into a model by their names.

    Arguments:
        model: the model, on any device.
        weights: parameters and buffers by name.
        source: where they come from, for messages.
        strict: whether all names and shapes must be the model's; else those that are get copied.

    Raises:
        CheckpointError: `strict`, and a name or a shape differs.
        ValueError: nothing fits.
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
    return Graft(source, loaded, skipped, left)
