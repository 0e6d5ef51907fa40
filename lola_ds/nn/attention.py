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

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid_coordinates(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Integer coordinates of a grid's points in row-major order, float32, with shape (T, N)."""
    axes = [torch.arange(s, dtype=torch.float32, device=device) for s in shape]
    return torch.cartesian_prod(*axes).reshape(-1, len(shape))


@functools.lru_cache(maxsize=8)
def local_window(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    periodic: tuple[bool, ...],
    device: torch.device,
) -> Tensor:
    """The mask of local attention, boolean with shape (T, T).

    Token j is visible to token i when on every axis their distance, wrapped where the axis is
    periodic, is at most `window // 2`.

    Arguments:
        shape: the shape of the grid of tokens, T points in all.
        window: the window's size along each axis.
        periodic: whether each axis wraps.
        device: the device of the mask.
    """
    with torch.no_grad():
        p = grid_coordinates(shape, device)
        distance = (p[:, None] - p[None, :]).abs()
        size, wraps = torch.tensor(shape, device=device), torch.tensor(periodic, device=device)
        distance = torch.where(wraps, torch.minimum(distance, size - distance), distance)
        return (distance <= torch.tensor(window, device=device) // 2).all(dim=-1)


def init_theta(axes: int, channels: int) -> Tensor:
    r"""Draws rotary frequencies with shape (N, channels / 2).

    Amplitudes are :math:`100^{-u}` with :math:`u` uniform in [0, 1), directions uniform on the
    sphere.
    """
    amplitude = torch.exp(-math.log(1e2) * torch.rand(channels // 2))
    return F.normalize(torch.randn(axes, channels // 2), dim=0) * amplitude


def rope_angles(coordinates: Tensor, theta: Tensor, heads: int) -> Tensor:
    """Rotary angles of each token and head, always in float32.

    Arguments:
        coordinates: the tokens' coordinates, with shape (T, N).
        theta: the frequencies of each axis, with shape (N, H/2).
        heads: the number of heads, which share H/2 frequencies out.

    Returns:
        The angles, with shape (heads, T, H/heads/2).
    """
    angles = (coordinates.unsqueeze(-1) * theta).sum(dim=1)
    return angles.unflatten(-1, (heads, -1)).movedim(1, 0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of features, in float32.

    Arguments:
        x: features, with shape (B, heads, T, d).
        cos: cosines of the angles, with shape (heads, T, d/2).
        sin: sines of the angles, with shape (heads, T, d/2).
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


class MultiheadSelfAttention(nn.Module):
    """Self-attention over tokens; see the module's formula.

    Arguments:
        channels: the number H of features.
        heads: the number of heads.
        qk_norm: whether queries and keys are RMS-normalised in each head (eps 1e-5).
        value_residual: whether values are mixed with those of the first block; the learned share
            of the latter starts at one half.

    Raises:
        ValueError: if the features do not split in heads of an even size.
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
        self.qkv_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.y_proj = nn.Linear(channels, channels)
        self.value_share = nn.Parameter(torch.tensor(0.5)) if value_residual else None

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        mask: Tensor | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends.

        Arguments:
            x: tokens, with shape (B, T, H).
            angles: rotary angles, with shape (heads, T, H/heads/2), or None for no rotation.
            mask: True where token j is visible to token i, with shape (T, T), or None for all.
            first_values: the values of the first block, with shape (B, heads, T, H/heads), to mix
                with this one's where values are residual.

        Returns:
            Tokens, with shape (B, T, H), and this block's values before they are mixed.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q, k = (F.rms_norm(a, a.shape[-1:], eps=1e-5).to(v.dtype) for a in (q, k))
        if angles is not None:
            cos, sin = angles.cos(), angles.sin()
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = v
        if self.value_share is not None and first_values is not None:
            mixed = torch.lerp(v, first_values, self.value_share.to(v.dtype))
        y = F.scaled_dot_product_attention(q, k, mixed, attn_mask=mask)
        return self.y_proj(y.transpose(1, 2).flatten(-2)), v


class GridAttention(nn.Module):
    """Self-attention over all positions of a grid, with the parameters of torch's own attention.

    Arguments:
        channels: the number C of channels.
        heads: the number of heads.

    Raises:
        ValueError: if heads do not split the channels.
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
        """Attends over the positions of (B, C, *S)."""
        y = F.linear(x.flatten(2).transpose(1, 2), self.in_proj_weight, self.in_proj_bias)
        q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.transpose(1, 2).unflatten(2, x.shape[2:])
