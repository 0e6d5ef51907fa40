r"""Deep-compression convolutional encoder and decoder.

The encoder descends levels; at each but the first, the grid is divided by the stride, either by
space-to-depth followed by a convolution or by a strided convolution. The decoder mirrors it. A
residual block is

.. math:: x' = x + \mathrm{FFN}(\mathrm{Attn}(\mathrm{Norm}(x)))

with optional self-attention over all positions, :math:`\mathrm{Attn}(y) = y + \mathrm{MHA}(y)`.

Precision: under autocast, convolutions and attention run in the lower precision, the residual
stream and normalisations in float32.

References:
    | Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models
    | (Chen et al., 2024)
    | https://arxiv.org/abs/2410.10733
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lola_ds.nn.activation_checkpointing import CheckpointingPolicy, block_policy, checkpoint_block
from lola_ds.nn.attention import GridAttention
from lola_ds.nn.layers import (
    FeedForward,
    Patchify,
    Unpatchify,
    Upsample,
    check_levels,
    convolution,
    make_norm,
    patchify,
    per_axis,
    to_channels_last,
    unpatchify,
)

__all__ = ["DCDecoder", "DCEncoder", "Residual", "ResidualBlock"]


class Residual(nn.Sequential):
    """Adds its input to the output of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Computes x + layers(x) for fields `x`."""
        return x + super().forward(x)


class ResidualBlock(nn.Module):
    """A residual block; see the module's formula.

    Arguments:
        channels: The number C of channels.
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
        self.attn: nn.Module = nn.Identity()
        if attention_heads is not None:
            self.attn = Residual(GridAttention(channels, attention_heads))
            kernel_size = 1
        hidden = ffn_factor * channels
        self.ffn = FeedForward(
            convolution(channels, hidden, spatial, kernel_size, periodic=periodic),
            convolution(hidden, channels, spatial, kernel_size, periodic=periodic, gain=1e-2),
            dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transforms fields (B, C, *S)."""
        return checkpoint_block(self.policy, self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.attn(self.norm(x)))


class _DCNet(nn.Module):
    """Base class of the encoder and the decoder: options and the residual blocks of levels.

    Arguments:
        in_channels: The number C_in of input channels.
        out_channels: The number C_out of output channels.
        hid_channels: The number of channels at each level, finest first.
        hid_blocks: The number of residual blocks at each level.
        spatial: The number N of axes.
        kernel_size: The size of kernels.
        stride: The division of the grid from a level to the next, for all axes or each.
        pixel_shuffle: Space-to-depth and convolution (depth-to-space in the decoder) between
            levels, rather than strided convolution (nearest upsampling).
        norm: `layer` or `group`.
        attention_heads: The number of heads at the levels with attention.
        ffn_factor: The expansion of feed-forward layers.
        dropout: The dropout rate, or None.
        patch_size: Patches of the fields that enter the finest level, for all axes or each.
        periodic: Whether axes are periodic, for all or each.
        identity_init: Whether convolutions between levels start near the identity.
        checkpointing: Which blocks are recomputed in the backward pass; see `checkpoint_block`.

    Raises:
        ValueError: Levels or axes do not agree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hid_channels: Sequence[int] = (64, 128, 256),
        hid_blocks: Sequence[int] = (3, 3, 3),
        spatial: int = 2,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        pixel_shuffle: bool = True,
        norm: str = "layer",
        attention_heads: Mapping[int, int] | None = None,
        ffn_factor: int = 1,
        dropout: float | None = None,
        patch_size: int | Sequence[int] = 1,
        periodic: bool | Sequence[bool] = False,
        identity_init: bool = True,
        checkpointing: CheckpointingPolicy = False,
    ) -> None:
        super().__init__()
        heads = check_levels(hid_channels, hid_blocks, attention_heads or {})
        self.patch = per_axis(patch_size, spatial, "patch_size")
        self.strides = per_axis(stride, spatial, "stride")
        self.pixel_shuffle = pixel_shuffle
        axes: dict[str, Any] = {
            "spatial": spatial,
            "kernel_size": kernel_size,
            "periodic": periodic,
        }
        conv = functools.partial(convolution, identity_init=identity_init, **axes)
        index = itertools.count()
        blocks = [
            [
                ResidualBlock(
                    channels,
                    norm=norm,
                    attention_heads=heads.get(level),
                    ffn_factor=ffn_factor,
                    dropout=dropout,
                    policy=block_policy(checkpointing, next(index)),
                    **axes,
                )
                for _ in range(count)
            ]
            for level, (channels, count) in enumerate(zip(hid_channels, hid_blocks))
        ]
        self._build(in_channels, out_channels, hid_channels, blocks, conv)

    def _build(
        self,
        c_in: int,
        c_out: int,
        channels: Sequence[int],
        blocks: Sequence[Sequence[nn.Module]],
        conv: Callable[..., nn.Module],
    ) -> None:
        """Assembles the residual blocks of all levels with the convolutions between them."""
        raise NotImplementedError


class DCEncoder(_DCNet):
    """Encodes fields in a coarser grid with more channels."""

    def _build(
        self,
        c_in: int,
        c_out: int,
        channels: Sequence[int],
        blocks: Sequence[Sequence[nn.Module]],
        conv: Callable[..., nn.Module],
    ) -> None:
        self.descent = nn.ModuleList()
        for level, residual in enumerate(blocks):
            if level == 0:
                first = conv(math.prod(self.patch) * c_in, channels[0])
            elif self.pixel_shuffle:
                finer = math.prod(self.strides) * channels[level - 1]
                first = nn.Sequential(Patchify(self.strides), conv(finer, channels[level]))
            else:
                first = conv(channels[level - 1], channels[level], stride=self.strides)
            last = [conv(channels[-1], c_out)] if level == len(blocks) - 1 else []
            self.descent.append(nn.Sequential(first, *residual, *last))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes fields (B, C_in, *S) as float32 latents (B, C_out, *S')."""
        x = to_channels_last(patchify(x, self.patch))
        for level in self.descent:
            x = level(x)
        return x.float().contiguous()


class DCDecoder(_DCNet):
    """Decodes a latent; mirrors `DCEncoder` and takes the same options, levels finest first."""

    def _build(
        self,
        c_in: int,
        c_out: int,
        channels: Sequence[int],
        blocks: Sequence[Sequence[nn.Module]],
        conv: Callable[..., nn.Module],
    ) -> None:
        self.ascent = nn.ModuleList()
        for level, residual in reversed(list(enumerate(blocks))):
            first = [conv(c_in, channels[-1])] if level == len(blocks) - 1 else []
            if level == 0:
                last = conv(channels[0], math.prod(self.patch) * c_out)
            elif self.pixel_shuffle:
                finer = math.prod(self.strides) * channels[level - 1]
                last = nn.Sequential(conv(channels[level], finer), Unpatchify(self.strides))
            else:
                coarse = conv(channels[level], channels[level - 1])
                last = nn.Sequential(Upsample(self.strides), coarse)
            self.ascent.append(nn.Sequential(*first, *residual, last))

    def forward(self, z: Tensor) -> Tensor:
        """Decodes latents (B, C_in, *S') as float32 fields (B, C_out, *S)."""
        x = to_channels_last(z)
        for level in self.ascent:
            x = level(x)
        return unpatchify(x, self.patch, last=False).float().contiguous()
