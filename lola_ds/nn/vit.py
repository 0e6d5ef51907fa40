r"""Vision transformer for fields with any number of axes, modulated by a vector.

A block with modulation :math:`a, b, c, d` maps tokens :math:`x` (and the skip input :math:`s`) to

.. math::
    y & = (1 + a) \, \mathrm{LayerNorm}(x) + b \\
    y & = \mathrm{FFN}(y + \mathrm{MSA}(y)) \\
    x' & = \frac{x + c \, y}{\sqrt{1 + c^2}} \, , \qquad
    x'' = \frac{x' + d \, s}{\sqrt{1 + d^2}} \, .

Shapes: B batch, T tokens, H hidden channels, D modulation features, N axes.

The tokens may be divided among several ranks (`sequence_parallel.py`): then T is their number on
this one.

Precision: under autocast, attention and feed-forward layers run in the lower precision; tokens,
modulation, angles, embeddings, the input and the output projection stay in float32.

References:
    | Scalable Diffusion Models with Transformers (Peebles et al., 2022)
    | https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lola_ds.kernels import gated_residual, modulate_branches
from lola_ds.nn.activation_checkpointing import CheckpointingPolicy, block_policy, checkpoint_block
from lola_ds.nn.attention import MultiheadSelfAttention, grid_coordinates, init_theta, local_window
from lola_ds.nn.embedding import PositionalEmbedding
from lola_ds.nn.layers import (
    FeedForward,
    Float32Linear,
    matmul_dtype,
    patchify,
    per_axis,
    periodic_axes,
    unpatchify,
)
from lola_ds.nn.modulation import make_modulation, modulation
from lola_ds.nn.sequence_parallel import SequenceGroup

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["ViT", "ViTBlock"]


class ViTBlock(nn.Module):
    """A transformer block; see the module's formula.

    Arguments:
        channels: The number H of hidden channels.
        mod_features: The number D of modulation features; with 0, the modulation is a parameter.
        ffn_factor: The expansion of the feed-forward layer.
        axes: The number N of axes of the grid.
        rope: Whether queries and keys are rotated.
        dropout: The dropout rate inside the feed-forward layer, or None.
        attention_heads: The number of heads.
        qk_norm: Whether queries and keys are normalised.
        value_residual: Whether the attention's values are mixed with those of the first block.
        return_values: Whether the block returns the values of its attention.
    """

    def __init__(
        self,
        channels: int,
        mod_features: int = 0,
        ffn_factor: int = 4,
        axes: int = 2,
        rope: bool = True,
        dropout: float | None = None,
        attention_heads: int = 1,
        qk_norm: bool = True,
        value_residual: bool = False,
        return_values: bool = False,
    ) -> None:
        super().__init__()
        self.return_values = return_values
        self.ada_zero = make_modulation(mod_features, (4, channels))
        self.theta = nn.Parameter(init_theta(axes, channels)) if rope else None
        self.msa = MultiheadSelfAttention(channels, attention_heads, qk_norm, value_residual)
        self.ffn = FeedForward(
            nn.Linear(channels, ffn_factor * channels),
            nn.Linear(ffn_factor * channels, channels),
            dropout,
        )

    def forward(
        self,
        x: Tensor,
        mod: Tensor | None,
        coordinates: Tensor,
        skip: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Transforms tokens.

        Arguments:
            x: Tokens, with shape (B, T, H), float32.
            mod: Modulation vector, with shape (B, D), or None when D = 0.
            coordinates: The tokens' coordinates, with shape (T, N).
            skip: The skip input, with shape (B, T, H).
            mask: The attention mask, with shape (T, T), or its blocks.
            first_values: The attention's values in the first block, where values are residual.

        Returns:
            Tokens, with shape (B, T, H), float32, and the attention's values in this block if they
            are returned, else None: an unused output would get a gradient of zeros.
        """
        a, b, c, d = (scale.unsqueeze(1) for scale in modulation(self.ada_zero, mod, 4))
        y, z, x = modulate_branches(x, a, b, matmul_dtype(x))
        attended, values = self.msa(y, coordinates, self.theta, mask, first_values)
        y = self.ffn(z + attended)
        return gated_residual(x, y, c, skip, d), values if self.return_values else None


class ViT(nn.Module):
    """Vision transformer on a grid with N axes.

    Arguments:
        in_channels: The number C_in of input channels.
        out_channels: The number C_out of output channels.
        cond_channels: The number of channels of the condition concatenated to the input.
        mod_features: The number D of modulation features.
        hid_channels: The number H of hidden channels.
        hid_blocks: The number of blocks.
        attention_heads: The number of attention heads.
        ffn_factor: The expansion of the feed-forward layers.
        qk_norm: Whether queries and keys are normalised.
        rope: Whether queries and keys are rotated.
        dropout: The dropout rate in feed-forward layers, or None.
        spatial: The number N of axes.
        patch_size: The size of input patches, for all axes or each.
        unpatch_size: The size of output patches; that of input patches by default.
        window_size: The size of local attention windows, in tokens; None for global attention.
        periodic: Whether windows wrap, for all axes or each.
        value_residual: Whether the attention's values in deeper blocks are mixed with those in the
            first.
        checkpointing: Which blocks are recomputed in the backward pass; see `checkpoint_block`.

    Raises:
        ValueError: An option has the wrong number of axes or heads do not split the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_channels: int = 0,
        mod_features: int = 0,
        hid_channels: int = 1024,
        hid_blocks: int = 16,
        attention_heads: int = 16,
        ffn_factor: int = 4,
        qk_norm: bool = True,
        rope: bool = True,
        dropout: float | None = None,
        spatial: int = 2,
        patch_size: int | Sequence[int] = 1,
        unpatch_size: int | Sequence[int] | None = None,
        window_size: int | Sequence[int] | None = None,
        periodic: bool | Sequence[bool] = False,
        value_residual: bool = False,
        checkpointing: CheckpointingPolicy = False,
    ) -> None:
        super().__init__()
        self.patch = per_axis(patch_size, spatial, "patch_size")
        self.unpatch = self.patch
        if unpatch_size is not None:
            self.unpatch = per_axis(unpatch_size, spatial, "unpatch_size")
        self.window = None
        if window_size is not None:
            self.window = per_axis(window_size, spatial, "window_size")
        self.periodic = periodic_axes(periodic, spatial)
        self.value_residual = value_residual
        self.sequence = SequenceGroup()
        self.policies = [block_policy(checkpointing, depth) for depth in range(hid_blocks)]
        self.modulations: nn.Module | None = None  # of all blocks at once; see `inference`

        in_features = math.prod(self.patch) * (in_channels + cond_channels)
        self.in_proj = Float32Linear(in_features, hid_channels)
        self.out_proj = Float32Linear(hid_channels, math.prod(self.unpatch) * out_channels)
        self.positional_embedding = PositionalEmbedding(spatial, hid_channels)
        self.blocks = nn.ModuleList(
            ViTBlock(
                hid_channels,
                mod_features=mod_features,
                ffn_factor=ffn_factor,
                axes=spatial,
                rope=rope,
                dropout=dropout,
                attention_heads=attention_heads,
                qk_norm=qk_norm,
                value_residual=value_residual and depth > 0,
                return_values=value_residual and depth == 0,
            )
            for depth in range(hid_blocks)
        )

    def forward(self, x: Tensor, mod: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Transforms fields.

        Arguments:
            x: Fields, with shape (B, C_in, *S).
            mod: Modulation vector, with shape (B, D).
            cond: The condition, with shape (B, C_cond, *S).

        Returns:
            Fields, float32, with shape (B, C_out, *S·unpatch/patch).
        """
        if cond is not None:
            x = torch.cat((x, cond.to(x.dtype)), dim=1)
        x = patchify(x, self.patch, last=True)  # as tokens are
        shape = tuple(x.shape[2:])
        mask = None
        if self.window is not None:
            mask = local_window(shape, self.window, self.periodic, x.device)

        coordinates = self.sequence.split(grid_coordinates(shape, x.device)[None])[0]
        skip = self.in_proj(self.sequence.split(x.flatten(2).transpose(1, 2)))
        x = skip + self.positional_embedding(coordinates)
        first_values = None
        mods = repeat(mod) if self.modulations is None else self.modulations(mod)
        for block, policy, mod in zip(self.blocks, self.policies, mods):
            x, values = checkpoint_block(
                policy, block, x, mod, coordinates, skip, mask, first_values
            )
            if self.value_residual and first_values is None:
                first_values = values
        x = self.sequence.gather(self.out_proj(x))
        x = x.transpose(1, 2).unflatten(2, shape)
        return unpatchify(x, self.unpatch, last=False)
