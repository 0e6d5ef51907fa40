r"""UNet for fields with one to four axes, modulated by a vector.

The fields descend levels of coarser grids and more channels, and ascend them again; at each level,
the descending fields are concatenated to the ascending ones. A residual block with modulation
:math:`a, b, c` is

.. math::
    y & = (1 + a) \, \mathrm{Norm}(x) + b \\
    y & = \mathrm{FFN}(y + \mathrm{MHA}(y)) \\
    x' & = \frac{x + c \, y}{\sqrt{1 + c^2}}

where the attention over all positions is optional. The first convolution also reads the coordinates
of the points, in [-1, 1] along each axis, so that a network of local kernels can depend on the
position.

Shapes: B batch, C channels, *S axes, of which there are N (`spatial`), D modulation features. With
four axes, convolutions are factored in space, then time.

Precision: under autocast, convolutions and attention run in the lower precision; modulation and
normalisations stay in float32, and so does the residual stream, but at the entrance of levels.

References:
    | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
    | https://arxiv.org/abs/1505.04597

    | Scalable Diffusion Models with Transformers (Peebles et al., 2022)
    | https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.nn.activation_checkpointing import CheckpointingPolicy, block_policy, checkpoint_block
from lola_ds.nn.attention import GridAttention
from lola_ds.nn.layers import (
    FeedForward,
    Upsample,
    check_levels,
    convolution,
    make_norm,
    per_axis,
    to_channels_last,
)
from lola_ds.nn.modulation import make_modulation, modulation

__all__ = ["ModulatedBlock", "UNet", "unit_coordinates"]


def unit_coordinates(x: Tensor) -> Tensor:
    """Computes coordinates in [-1, 1] of the points of fields.

    Arguments:
        x: Fields, with shape (B, C, *S).

    Returns:
        Coordinates, with shape (B, N, *S).
    """
    S = x.shape[2:]
    axes = [torch.linspace(-1, 1, s, dtype=x.dtype, device=x.device) for s in S]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(x), *grid.shape)


class ModulatedBlock(nn.Module):
    """A residual block; see the module's formula.

    Arguments:
        channels: The number C of channels.
        mod_features: The number D of modulation features; with 0, the modulation is a parameter.
        spatial: The number N of axes.
        norm: `layer` or `group`.
        attention_heads: The number of heads, or None for no attention; with attention the block's
            convolutions are 1×1.
        ffn_factor: The expansion of the feed-forward layer.
        dropout: The dropout rate inside the feed-forward layer, or None.
        kernel_size: The size of kernels.
        periodic: Whether axes are periodic, for all or each.
        policy: Whether the block is recomputed in the backward pass; see `checkpoint_block`.
    """

    def __init__(
        self,
        channels: int,
        mod_features: int = 0,
        spatial: int = 2,
        norm: str = "layer",
        attention_heads: int | None = None,
        ffn_factor: int = 1,
        dropout: float | None = None,
        kernel_size: int | Sequence[int] = 3,
        periodic: bool | Sequence[bool] = False,
        policy: str = "none",
    ) -> None:
        super().__init__()
        self.policy = policy
        self.norm = make_norm(norm, channels)
        self.ada_zero = make_modulation(mod_features, (3, channels, *[1] * spatial))
        self.attn = None
        if attention_heads is not None:
            self.attn = GridAttention(channels, attention_heads)
            kernel_size = 1
        hidden = ffn_factor * channels
        self.ffn = FeedForward(
            convolution(channels, hidden, spatial, kernel_size, periodic=periodic),
            convolution(hidden, channels, spatial, kernel_size, periodic=periodic),
            dropout,
        )

    def forward(self, x: Tensor, mod: Tensor | None = None) -> Tensor:
        """Transforms fields.

        Arguments:
            x: Fields, with shape (B, C, *S).
            mod: Modulation vectors, with shape (B, D), or None when D = 0.

        Returns:
            Fields, with shape (B, C, *S).
        """
        return checkpoint_block(self.policy, self._forward, x, mod)

    def _forward(self, x: Tensor, mod: Tensor | None) -> Tensor:
        axes = [1] * (x.ndim - 2)
        a, b, c = (s.unflatten(-1, (-1, *axes)) for s in modulation(self.ada_zero, mod, 3))
        y = torch.addcmul(b, 1 + a, self.norm(x))
        if self.attn is not None:
            y = y + self.attn(y)
        y = self.ffn(y)
        return (x + c * y) * torch.rsqrt(1 + c * c)


class UNet(nn.Module):
    """UNet on a grid with N axes.

    Arguments:
        in_channels: The number C_in of input channels.
        out_channels: The number C_out of output channels.
        cond_channels: The number of channels of the condition concatenated to the input.
        mod_features: The number D of modulation features.
        hid_channels: The number of channels at each level, finest first.
        hid_blocks: The number of residual blocks at each level, on either side.
        spatial: The number N of axes.
        kernel_size: The size of kernels.
        stride: The division of the grid from a level to the next, for all axes or each.
        norm: `layer` or `group`.
        attention_heads: The number of heads at the levels with attention.
        ffn_factor: The expansion of feed-forward layers.
        dropout: The dropout rate in feed-forward layers, or None.
        periodic: Whether axes are periodic, for all or each.
        identity_init: Whether convolutions between levels start near the identity.
        checkpointing: Which blocks are recomputed in the backward pass; see `checkpoint_block`.

    Raises:
        ValueError: Levels or axes do not agree, or heads do not split the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_channels: int = 0,
        mod_features: int = 0,
        hid_channels: Sequence[int] = (64, 128, 256),
        hid_blocks: Sequence[int] = (3, 3, 3),
        spatial: int = 2,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        norm: str = "layer",
        attention_heads: Mapping[int, int] | None = None,
        ffn_factor: int = 1,
        dropout: float | None = None,
        periodic: bool | Sequence[bool] = False,
        identity_init: bool = True,
        checkpointing: CheckpointingPolicy = False,
    ) -> None:
        super().__init__()
        heads = check_levels(hid_channels, hid_blocks, attention_heads or {})
        strides = per_axis(stride, spatial, "stride")
        axes: dict[str, Any] = {
            "spatial": spatial,
            "kernel_size": kernel_size,
            "periodic": periodic,
        }

        index = itertools.count()

        def blocks(level: int) -> list[nn.Module]:
            return [
                ModulatedBlock(
                    hid_channels[level],
                    mod_features,
                    norm=norm,
                    attention_heads=heads.get(level),
                    ffn_factor=ffn_factor,
                    dropout=dropout,
                    policy=block_policy(checkpointing, next(index)),
                    **axes,
                )
                for _ in range(hid_blocks[level])
            ]

        def transition(c_in: int, c_out: int, stride: Sequence[int] | int = 1) -> nn.Module:
            return convolution(c_in, c_out, stride=stride, identity_init=identity_init, **axes)

        self.descent, self.ascent = nn.ModuleList(), nn.ModuleList()
        deepest = len(hid_blocks) - 1
        for level, channels in enumerate(hid_channels):
            if level == 0:
                down = convolution(in_channels + spatial + cond_channels, channels, **axes)
                up = convolution(channels, out_channels, **axes)
            else:
                down = transition(hid_channels[level - 1], channels, strides)
                up = Upsample(strides)
            self.descent.append(nn.ModuleList([down, *blocks(level)]))
            layers = [*blocks(level), up]
            if level < deepest:
                layers.insert(0, transition(hid_channels[level + 1] + channels, channels))
            self.ascent.insert(0, nn.ModuleList(layers))

    def forward(self, x: Tensor, mod: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Transforms fields.

        Arguments:
            x: Fields, with shape (B, C_in, *S).
            mod: Modulation vector, with shape (B, D).
            cond: The condition, with shape (B, C_cond, *S).

        Returns:
            Fields, float32, with shape (B, C_out, *S).
        """
        known = [] if cond is None else [cond.to(x.dtype)]
        x = to_channels_last(torch.cat((x, unit_coordinates(x), *known), dim=1))
        remembered: list[Tensor] = []
        for level in self.descent:
            x = _through(level, x, mod)
            remembered.append(x)
        x = _through(self.ascent[0], remembered.pop(), mod)
        for level in self.ascent[1:]:
            skip = remembered.pop()
            x = x[(..., *(slice(s) for s in skip.shape[2:]))]
            x = _through(level, torch.cat((x, skip), dim=1), mod)
        return x.float()


def _through(level: nn.Module, x: Tensor, mod: Tensor | None) -> Tensor:
    """Applies a level's layers in turn; residual blocks are modulated."""
    for layer in level.children():
        x = layer(x, mod) if isinstance(layer, ModulatedBlock) else layer(x)
    return x
