r"""Preparation of networks for inference, in place, by changes that training does not allow.

- Weights are stored in the dtype in which they are multiplied (`cast_weights`).
- The modulation of all blocks of a transformer is computed at once (`fuse_modulations`): sixteen
  times three products of a few rows would take longer to launch than to compute on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lola_ds.nn.compilation import BLOCK_METHODS, compile_network
from lola_ds.nn.layers import disable_autocast
from lola_ds.nn.modulation import AdaZero
from lola_ds.nn.vit import ViT

__all__ = ["FusedModulation", "cast_weights", "fuse_modulations", "prepare_for_inference"]

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of matrix products and convolutions in blocks.

    It is for inference under autocast of that dtype: results are the same as with casts at every
    call. Modulation, embeddings and projections at the ends keep their float32 weights.
    """
    for block in network.modules():
        if type(block) in BLOCK_METHODS:
            for name, module in block.named_modules():
                if isinstance(module, ROUNDED) and not name.startswith("ada_zero"):
                    module.to(dtype)


class FusedModulation(nn.Module):
    """The modulation layers of N blocks as one; float32.

    Arguments:
        sources: Theirs, of equal sizes: D features to O values.
    """

    def __init__(self, sources: list[AdaZero]) -> None:
        super().__init__()
        layers = ([layer for layer in s if isinstance(layer, nn.Linear)] for s in sources)
        first, last = zip(*layers, strict=True)
        self.first_weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in first]))
        self.first_bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in first]))
        transposed = [layer.weight.detach().T for layer in last]
        self.last_weight = nn.Parameter(torch.stack(transposed))  # (N, D, O)
        self.last_bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in last])[:, None])

    @disable_autocast
    def forward(self, mod: Tensor) -> tuple[Tensor, ...]:
        """Maps modulation vectors (B, D) to N outputs (B, O)."""
        hidden = F.silu(F.linear(mod, self.first_weight, self.first_bias))
        hidden = hidden.unflatten(1, (len(self.last_weight), -1)).transpose(0, 1)
        return torch.baddbmm(self.last_bias, hidden, self.last_weight).unbind(0)


def fuse_modulations(network: nn.Module) -> None:
    """Gives every transformer of a network whose blocks are modulated one layer for all of them.

    Results change by the rounding of sums. Parameters are renamed, so states are loaded before.
    """
    for module in network.modules():
        if isinstance(module, ViT):
            found = [block.ada_zero for block in module.blocks]
            sources = [source for source in found if isinstance(source, AdaZero)]
            if sources:  # all blocks have theirs, or none
                module.modulations = FusedModulation(sources)
                for block in module.blocks:
                    block.ada_zero = nn.Identity()


def prepare_for_inference(network: nn.Module, precision: str, compiled: bool = False) -> None:
    """Makes a network on its device ready for inference, in place.

    Arguments:
        network: The network; its weights are loaded, and learn no more.
        precision: `bf16` where it will run under autocast to bfloat16.
        compiled: Whether to compile it, its modulations joined.

    Raises:
        ValueError: There is nothing to compile, or the compiler is switched off.
    """
    if precision == "bf16":
        cast_weights(network, torch.bfloat16)
    if compiled:
        fuse_modulations(network)
        compile_network(network)
    network.eval().requires_grad_(False)
