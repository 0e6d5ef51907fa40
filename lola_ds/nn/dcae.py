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

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lola_ds.nn.attention import GridAttention
from lola_ds.nn.layers import (
    Patchify,
    Unpatchify,
    convolution,
    make_norm,
    patchify,
    per_axis,
    unpatchify,
)


class Residual(nn.Sequential):
    """Adds its input to the output of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        """x + layers(x)."""
        return x + super().forward(x)


class ResidualBlock(nn.Module):
    """A residual block; see the module's formula.

    Arguments:
        channels: the number C of channels.
        spatial: the number N of axes.
        norm: `layer` or `group`.
        attention_heads: the number of heads, or None for no attention; with attention the block's
            convolutions are 1×1.
        ffn_factor: the expansion of the feed-forward layer.
        dropout: the dropout rate inside the feed-forward layer, or None.
        kernel_size: the size of kernels.
        periodic: whether axes are periodic, for all or each.
        checkpointing: whether the block is recomputed in the backward pass.
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
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.norm = make_norm(norm, channels)
        self.attn: nn.Module = nn.Identity()
        if attention_heads is not None:
            self.attn = Residual(GridAttention(channels, attention_heads))
            kernel_size = 1
        hidden = ffn_factor * channels
        last = convolution(hidden, channels, spatial, kernel_size, periodic=periodic)
        with torch.no_grad():
            last.weight.mul_(1e-2)
        self.ffn = nn.Sequential(
            convolution(channels, hidden, spatial, kernel_size, periodic=periodic),
            nn.SiLU(),
            nn.Dropout(dropout or 0.0),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, C, *S)."""
        if self.checkpointing and self.training:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.attn(self.norm(x)))


def _check_levels(
    hid_channels: Sequence[int], hid_blocks: Sequence[int], attention_heads: Mapping[int, int]
) -> dict[int, int]:
    if len(hid_channels) != len(hid_blocks):
        raise ValueError(
            f"hid_channels={list(hid_channels)} and hid_blocks={list(hid_blocks)} should have "
            "the same number of levels"
        )
    heads = {int(level): int(n) for level, n in attention_heads.items()}
    if any(not 0 <= level < len(hid_blocks) for level in heads):
        raise ValueError(
            f"attention_heads={heads} names a level that is not in 0..{len(hid_blocks) - 1}"
        )
    return heads


def _channels_last(x: Tensor) -> Tensor:
    """Stores two-dimensional fields channels-last, in which convolutions and norms are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class DCEncoder(nn.Module):
    """Encodes fields in a coarser grid with more channels.

    Arguments:
        in_channels: the number of channels of the fields.
        out_channels: the number of channels of the latent.
        hid_channels: the number of channels at each level, finest first.
        hid_blocks: the number of residual blocks at each level.
        spatial: the number N of axes.
        kernel_size: the size of kernels.
        stride: the division of the grid from a level to the next, for all axes or each.
        pixel_shuffle: space-to-depth then convolution, rather than strided convolution.
        norm: `layer` or `group`.
        attention_heads: the number of heads at the levels with attention.
        ffn_factor: the expansion of feed-forward layers.
        dropout: the dropout rate, or None.
        patch_size: patches of the input that enter the first level, for all axes or each.
        periodic: whether axes are periodic, for all or each.
        identity_init: whether convolutions between levels start near the identity.
        checkpointing: whether blocks are recomputed in the backward pass.

    Raises:
        ValueError: if levels or axes do not agree.
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
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        heads = _check_levels(hid_channels, hid_blocks, attention_heads or {})
        self.patch = per_axis(patch_size, spatial, "patch_size")
        strides = per_axis(stride, spatial, "stride")
        ends: dict[str, Any] = {
            "spatial": spatial,
            "kernel_size": kernel_size,
            "periodic": periodic,
        }

        def transition(c_in: int, c_out: int, **options: Any) -> nn.Module:
            return convolution(c_in, c_out, identity_init=identity_init, **ends, **options)

        self.descent = nn.ModuleList()
        for level, (channels, blocks) in enumerate(zip(hid_channels, hid_blocks)):
            layers: list[nn.Module] = []
            if level == 0:
                layers.append(transition(math.prod(self.patch) * in_channels, channels))
            elif pixel_shuffle:
                finer = math.prod(strides) * hid_channels[level - 1]
                layers.append(nn.Sequential(Patchify(strides), transition(finer, channels)))
            else:
                layers.append(transition(hid_channels[level - 1], channels, stride=strides))
            layers.extend(
                ResidualBlock(
                    channels,
                    norm=norm,
                    attention_heads=heads.get(level),
                    ffn_factor=ffn_factor,
                    dropout=dropout,
                    checkpointing=checkpointing,
                    **ends,
                )
                for _ in range(blocks)
            )
            if level == len(hid_blocks) - 1:
                layers.append(transition(channels, out_channels))
            self.descent.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, C_in, *S) as (B, C_out, *S'), float32."""
        x = _channels_last(patchify(x, self.patch))
        for level in self.descent:
            x = level(x)
        return x.float()


class DCDecoder(nn.Module):
    """Decodes a latent; mirrors `DCEncoder` and takes the same options, levels finest first."""

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
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        heads = _check_levels(hid_channels, hid_blocks, attention_heads or {})
        self.patch = per_axis(patch_size, spatial, "patch_size")
        strides = per_axis(stride, spatial, "stride")
        ends: dict[str, Any] = {
            "spatial": spatial,
            "kernel_size": kernel_size,
            "periodic": periodic,
        }

        def transition(c_in: int, c_out: int) -> nn.Module:
            return convolution(c_in, c_out, identity_init=identity_init, **ends)

        self.ascent = nn.ModuleList()
        for level in reversed(range(len(hid_blocks))):
            channels = hid_channels[level]
            layers: list[nn.Module] = []
            if level == len(hid_blocks) - 1:
                layers.append(transition(in_channels, channels))
            layers.extend(
                ResidualBlock(
                    channels,
                    norm=norm,
                    attention_heads=heads.get(level),
                    ffn_factor=ffn_factor,
                    dropout=dropout,
                    checkpointing=checkpointing,
                    **ends,
                )
                for _ in range(hid_blocks[level])
            )
            if level == 0:
                layers.append(transition(channels, math.prod(self.patch) * out_channels))
            elif pixel_shuffle:
                finer = math.prod(strides) * hid_channels[level - 1]
                layers.append(nn.Sequential(transition(channels, finer), Unpatchify(strides)))
            else:
                scale = tuple(float(s) for s in strides)
                upsample = nn.Upsample(scale_factor=scale, mode="nearest")
                conv = transition(channels, hid_channels[level - 1])
                layers.append(nn.Sequential(upsample, conv))
            self.ascent.append(nn.Sequential(*layers))

    def forward(self, z: Tensor) -> Tensor:
        """Decodes (B, C_in, *S') as (B, C_out, *S), float32."""
        x = _channels_last(z)
        for level in self.ascent:
            x = level(x)
        return unpatchify(x, self.patch).float().contiguous()
