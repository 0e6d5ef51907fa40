r"""Multi-head self-attention with rotary positions and normalised queries and keys.

For tokens :math:`x_i` at coordinates :math:`p_i`, each head computes

.. math:: y_i = \sum_j \mathrm{softmax}_j \left(
    \frac{\langle R(p_i) \hat{q}_i, R(p_j) \hat{k}_j \rangle}{\sqrt{d}} \right) v_j

where :math:`\hat{q}, \hat{k}` are RMS-normalised and :math:`R(p)` rotates the neighbouring pairs
:math:`(2i, 2i + 1)` of features by the angles :math:`p \, \theta`. Scores depend on :math:`p_i -
p_j` only.

With value residuals, the values of a block are mixed with those of the first block,
:math:`v_j \leftarrow (1 - \lambda) \, v_j + \lambda \, v_j^{(1)}`, with a learned :math:`\lambda`.

References:
    | RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2023)
    | https://arxiv.org/abs/2104.09864

    | Value Residual Learning (Zhou et al., 2024)
    | https://arxiv.org/abs/2410.17897
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lola_ds.kernels import qk_norm_rope, second_derivatives_enabled
from lola_ds.kernels.reference import upcast
from lola_ds.nn.layers import disable_autocast
from lola_ds.nn.sequence_parallel import SequenceGroup

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = [
    "SHORT_SEQUENCE",
    "GridAttention",
    "MultiheadSelfAttention",
    "attend",
    "grid_coordinates",
    "init_theta",
    "local_window",
    "window_block_mask",
]


def grid_coordinates(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Computes integer coordinates of a grid's points, in row-major order.

    Arguments:
        shape: The shape of the grid, T points in all.
        device: The device of the result.

    Returns:
        Coordinates in float32, with shape (T, N).
    """
    axes = [torch.arange(s, dtype=torch.float32, device=device) for s in shape]
    return torch.cartesian_prod(*axes).reshape(-1, len(shape))


@functools.lru_cache(maxsize=8)
def local_window(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    periodic: tuple[bool, ...],
    device: torch.device,
) -> Tensor | BlockMask:
    """Makes the mask of local attention: on a GPU in blocks, of which empty ones are skipped.

    Token j is visible to token i when on every axis their distance, wrapped where the axis is
    periodic, is at most `window // 2`.

    Arguments:
        shape: The shape of the grid of tokens, T points in all.
        window: The window's size along each axis.
        periodic: Whether each axis wraps.
        device: The device of the mask.

    Returns:
        The mask, boolean with shape (T, T), or its blocks.
    """
    with torch.no_grad():
        if device.type == "cuda":
            return window_block_mask(shape, window, periodic, device)
        i = torch.arange(math.prod(shape), device=device)
        return _within(i[:, None], i[None, :], shape, window, periodic)


def _within(
    i: Tensor,
    j: Tensor,
    shape: tuple[int, ...],
    window: tuple[int, ...],
    periodic: tuple[bool, ...],
) -> Tensor:
    """Whether tokens i and j, numbered in row-major order, are within a window of each other."""
    visible, stride = None, 1
    for size, width, wraps in zip(reversed(shape), reversed(window), reversed(periodic)):
        distance = (i // stride % size - j // stride % size).abs()
        if wraps:
            distance = torch.minimum(distance, size - distance)
        near = distance <= width // 2
        visible = near if visible is None else visible & near
        stride *= size
    assert visible is not None
    return visible


def window_block_mask(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    periodic: tuple[bool, ...],
    device: torch.device,
) -> BlockMask:
    """Makes the mask of `local_window` in blocks, as FlexAttention takes it."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return _within(i, j, shape, window, periodic)

    tokens = math.prod(shape)
    return create_block_mask(visible, None, None, tokens, tokens, device=str(device))


def init_theta(axes: int, channels: int) -> Tensor:
    r"""Draws rotary frequencies.

    Amplitudes are :math:`100^{-u}` with :math:`u` uniform in [0, 1), directions uniform on the
    sphere.

    Arguments:
        axes: The number N of axes.
        channels: The number H of features.

    Returns:
        Frequencies, with shape (N, H/2).

    References:
        | Rotary Position Embedding for Vision Transformer (Heo et al., 2024)
        | https://arxiv.org/abs/2403.13298
    """
    amplitude = torch.exp(-math.log(1e2) * torch.rand(channels // 2))
    return F.normalize(torch.randn(axes, channels // 2), dim=0) * amplitude


BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Attention on a GPU, best first; torch's own order is another. The first that takes the shapes,
the dtype and the mask runs."""


SHORT_SEQUENCE = 128
"""Tokens up to which a CPU trains its attention in float32, whose backward takes half the time of
bfloat16's, and in compiled blocks by plain matrix products, whose softmax the compiler fuses."""


@disable_autocast
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
    """Computes softmax attention by the fastest backend of the device.

    Autocast is off within: it would narrow again what is widened here.

    Arguments:
        q: Queries, with shape (B, heads, T, d).
        k: Keys, with the shape and dtype of `q`.
        v: Values, with the shape and dtype of `q`.
        mask: True where token j is visible to token i, with shape (T, T); or its blocks.

    Returns:
        Tokens, with shape (B, heads, T, d), of the dtype of `v`.
    """
    if not (mask is None or isinstance(mask, Tensor)):
        return _compiled_flex_attention()(q, k, v, block_mask=mask)
    order = sdpa_kernel(BACKENDS, set_priority=True) if q.is_cuda else contextlib.nullcontext()
    dtype, compiled = q.dtype, torch.compiler.is_compiling()
    short = q.device.type == "cpu" and q.shape[2] <= SHORT_SEQUENCE
    if short and (compiled or torch.is_grad_enabled()):
        q, k, v = upcast(q), upcast(k), upcast(v)
    if second_derivatives_enabled() or (short and compiled):
        order = sdpa_kernel(SDPBackend.MATH)
    with order:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).to(dtype)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class MultiheadSelfAttention(nn.Module):
    """Self-attention over tokens; see the module's formula.

    Arguments:
        channels: The number H of features.
        heads: The number of heads.
        qk_norm: Whether queries and keys are RMS-normalised in each head (eps 1e-5).
        value_residual: Whether values are mixed with those of the first block; the learned share
            of the latter starts at one half.

    Raises:
        ValueError: The features do not split in heads of an even size.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        qk_norm: bool = True,
        value_residual: bool = False,
    ) -> None:
        super().__init__()
        if channels % (2 * heads):
            raise ValueError(
                f"hid_channels={channels} should be a multiple of twice attention_heads={heads}"
            )
        self.heads = heads
        self.qk_norm = qk_norm
        self.sequence = SequenceGroup()
        self.qkv_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.y_proj = nn.Linear(channels, channels)
        self.value_share = nn.Parameter(torch.full((1,), 0.5)) if value_residual else None

    def forward(
        self,
        x: Tensor,
        coordinates: Tensor | None = None,
        theta: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends; `T` tokens are those of this rank where they are divided, but for the mask.

        Arguments:
            x: Tokens, with shape (B, T, H).
            coordinates: The tokens' coordinates, with shape (T, N).
            theta: Rotary frequencies, with shape (N, H/2), or None for no rotation.
            mask: True where token j is visible to token i, with shape (T, T), or its blocks, or
                None for all.
            first_values: The values of the first block, with shape (B, T, heads, H/heads), to mix
                with this one's where values are residual.

        Returns:
            Tokens, with shape (B, T, H), and this block's values before they are mixed.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1))
        if self.qk_norm or theta is not None:
            prepared = qk_norm_rope(qkv, coordinates, theta, self.qk_norm)
        else:
            prepared = qkv.unbind(2)
        q, k, v = prepared
        mixed = v
        if self.value_share is not None and first_values is not None:
            mixed = torch.lerp(v, first_values, self.value_share.to(v.dtype))
        q, k, mixed = (a.transpose(1, 2) for a in self.sequence.to_heads(q, k, mixed))
        y = self.sequence.to_tokens(attend(q, k, mixed, mask).transpose(1, 2))
        return self.y_proj(y.flatten(-2)), v


class GridAttention(nn.Module):
    """Self-attention over all positions of a grid, with the parameters of torch's own attention.

    Arguments:
        channels: The number C of channels.
        heads: The number of heads.

    Raises:
        ValueError: Heads do not split the channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention_heads: {heads} heads do not split {channels} channels")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over all positions of fields (B, C, *S)."""
        y = F.linear(x.flatten(2).transpose(1, 2), self.in_proj_weight, self.in_proj_bias)
        q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.transpose(1, 2).unflatten(2, x.shape[2:])
