"""Compiling networks block by block.

All blocks of one shape share one compiled graph, forward and backward: the compiler sees a block
once, not sixteen times, and every ZeRO stage can gather a block's parameters before it runs.
"""

from __future__ import annotations

from torch import nn

from lola_ds.nn import dcae, unet
from lola_ds.nn.vit import ViTBlock

BLOCKS = (ViTBlock, dcae.ResidualBlock, unet.ModulatedBlock)


def compile_blocks(network: nn.Module) -> int:
    """Compiles every residual block of a network in place; names of parameters do not change.

    Returns:
        The number of blocks.

    Raises:
        ValueError: the network has none.
    """
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no block to compile")
    for block in blocks:
        block.compile()
    return len(blocks)
