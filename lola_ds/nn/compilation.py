"""Compiling networks, block by block for training.

All blocks of one shape share one compiled graph, forward and backward: the compiler sees a block
once, not sixteen times. What is compiled is a block's arithmetic and not the call around it, so
that recomputation, and the hooks by which ZeRO-3 gathers parameters, stay outside of the graph.

A block is one graph or an error: the compiler raises where it would have to break the graph, where
it finds nothing to compile, and where it would fall back to uncompiled code because there are too
many shapes.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch._functorch.config
from torch import nn

from lola_ds.nn import dcae, unet
from lola_ds.nn.vit import ViTBlock

__all__ = ["BLOCK_METHODS", "compile_blocks", "compile_network"]

BLOCK_METHODS: dict[type[nn.Module], str] = {
    ViTBlock: "forward",
    dcae.ResidualBlock: "_forward",
    unet.ModulatedBlock: "_forward",
}
"""The kinds of blocks, and the method of each that recomputation calls."""

MAX_GRAPHS = 64
"""The number of graphs of a kind of block, above which something is wrong: one for each level of a
convolutional network, and each size of batch, in training and in validation."""


def compile_blocks(network: nn.Module) -> list[type[nn.Module]]:
    """Compiles every residual block of a network in place; names of parameters do not change.

    Each set of sizes gets a graph of its own. A copy of the network runs its own parameters,
    compiled too.

    Returns:
        The types of its blocks, which ZeRO-3 must gather as a whole.

    Raises:
        ValueError: The network has no blocks, or the compiler is switched off.
    """
    _check_compiler()
    kinds = [kind for kind in BLOCK_METHODS if any(type(m) is kind for m in network.modules())]
    if not kinds:
        raise ValueError(f"{type(network).__name__} has no block to compile; choose compile=false")
    torch._dynamo.config.recompile_limit = MAX_GRAPHS  # of the process; torch 2.11 has no other
    # As the training loop does it: otherwise the gradients of float32 layers are rounded too.
    torch._functorch.config.backward_pass_autocast = "off"
    compiled = {
        kind: torch.compile(getattr(kind, BLOCK_METHODS[kind]), fullgraph=True, dynamic=False)
        for kind in kinds
    }
    for module in network.modules():
        if type(module) in compiled:
            bound = MethodType(compiled[type(module)], module)
            setattr(module, BLOCK_METHODS[type(module)], bound)
    return kinds


def compile_network(network: nn.Module) -> None:
    """Compiles a network for inference in place.

    On a GPU its blocks are compiled, whose launches one CUDA graph can hold; on a CPU the network
    is one graph, which is a tenth quicker there.

    Raises:
        ValueError: The compiler is switched off, or a GPU's network has no blocks.
    """
    _check_compiler()
    if next(network.parameters()).is_cuda:
        compile_blocks(network)
    else:
        network.compile(dynamic=False)


def _check_compiler() -> None:
    if torch._dynamo.config.disable:
        raise ValueError(
            "compile=true, but TORCH_COMPILE_DISABLE=1 switches the compiler off; unset it, or "
            "choose compile=false"
        )
