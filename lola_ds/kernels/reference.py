r"""Reference implementation of every kernel in torch, differentiable, in any dtype.

They compute in float32 (in float64 for float64) and round once, at the end, as the kernels do. They
are also what runs wherever Triton does not.

Shapes: B batch, T tokens, H channels, h heads of d channels, N axes, C channels of a field, L
frames, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "channel_norm",
    "denoising_errors",
    "ema",
    "gated_residual",
    "modulate",
    "modulate_branches",
    "qk_norm_rope",
    "rope_angles",
    "rotate",
    "seeded_normal",
    "silu_dropout",
    "upcast",
]


def upcast(x: Tensor) -> Tensor:
    """Casts half precision to float32; other dtypes stay."""
    return x if x.dtype == torch.float64 else x.float()


def rope_angles(coordinates: Tensor, theta: Tensor, heads: int) -> Tensor:
    r"""Computes the rotary angles :math:`p \, \theta` of each token and head.

    Arguments:
        coordinates: The tokens' coordinates p, with shape (T, N).
        theta: The frequencies of each axis, with shape (N, H/2).
        heads: The number h of heads, which share H/2 frequencies out.

    Returns:
        The angles, with shape (T, h, d/2).
    """
    return (coordinates.unsqueeze(-1) * theta).sum(dim=1).unflatten(-1, (heads, -1))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates neighbouring pairs of features.

    Arguments:
        x: Features, with shape (B, T, h, d).
        angles: Angles, with shape (T, h, d/2).

    Returns:
        Features, with the shape of `x`.
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def qk_norm_rope(
    qkv: Tensor,
    coordinates: Tensor | None = None,
    theta: Tensor | None = None,
    norm: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Normalises and rotates queries and keys.

    .. math:: q' = R(p \, \theta) \frac{q}{\sqrt{\langle q^2 \rangle + \epsilon}}

    Arguments:
        qkv: Queries, keys and values, with shape (B, T, 3, h, d).
        coordinates: The tokens' coordinates p, with shape (T, N).
        theta: The frequencies of each axis, with shape (N, H/2), or None for no rotation.
        norm: Whether queries and keys are normalised.
        eps: The number :math:`\epsilon`.

    Returns:
        Queries, keys and values, each with shape (B, T, h, d).
    """
    q, k, v = qkv.unbind(2)
    angles = None
    if theta is not None and coordinates is not None:
        angles = rope_angles(coordinates, theta, qkv.shape[3])

    def prepare(x: Tensor) -> Tensor:
        x = upcast(x)
        if norm:
            x = F.rms_norm(x, x.shape[-1:], eps=eps)
        return x if angles is None else rotate(x, angles)

    return prepare(q).to(v.dtype), prepare(k).to(v.dtype), v


def silu_dropout(x: Tensor, keep: Tensor, p: float) -> Tensor:
    r"""Computes :math:`x \, \mathrm{sigmoid}(x) / (1 - p)` where `keep` is True, zero elsewhere."""
    return torch.where(keep, F.silu(upcast(x)) / (1 - p), 0.0).to(x.dtype)


def gated_residual(
    x: Tensor, y: Tensor, c: Tensor, skip: Tensor | None = None, d: Tensor | None = None
) -> Tensor:
    r"""Adds a branch and a skip input, keeping variances.

    .. math:: x' = \frac{x + c \, y}{\sqrt{1 + c^2}} \qquad
        x'' = \frac{x' + d \, s}{\sqrt{1 + d^2}}

    Arguments:
        x: The stream, with shape (B, T, H).
        y: The branch, with shape (B, T, H).
        c: The gate of the branch, with shape (B, 1, H) or (1, 1, H).
        skip: The skip input s, with shape (B, T, H), or None for :math:`x'`.
        d: The gate of the skip input, with the shape of `c`.

    Returns:
        The stream, with the shape and dtype of `x`.
    """
    x = (x + c * y) * torch.rsqrt(1 + c * c)
    if skip is not None and d is not None:
        x = (x + d * skip) * torch.rsqrt(1 + d * d)
    return x


def modulate(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> Tensor:
    r"""Computes :math:`(1 + a) \, \mathrm{LayerNorm}(x) + b`, with the variance over H.

    Arguments:
        x: Tokens, with shape (B, T, H).
        a: Scales, with shape (B, 1, H) or (1, 1, H).
        b: Shifts, shaped as a.
        dtype: The dtype of the result; that of `x` by default.
        eps: The number added to the variance.

    Returns:
        Tokens, with the shape of `x`.
    """
    y = torch.addcmul(b, 1 + a, F.layer_norm(x, x.shape[-1:], eps=eps))
    return y.to(dtype or x.dtype)


def modulate_branches(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result of `modulate` twice, for the two branches of a block, and `x`."""
    y = modulate(x, a, b, dtype, eps)
    return y, y, x


def channel_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Normalises fields (B, C, \*S) over C, with the variance over C - 1.

    torch's layer normalisation divides by C: the two differ by a factor, with
    :math:`r = 1 - 1/C`,

    .. math:: \frac{1}{\sqrt{\mathbb{V} + \epsilon}}
        = \frac{\sqrt{r}}{\sqrt{r \mathbb{V} + r \epsilon}} \, .
    """
    y = x.movedim(1, -1)
    r = 1 - 1 / x.shape[1]
    weight = y.new_full(y.shape[-1:], math.sqrt(r))
    return F.layer_norm(y, y.shape[-1:], weight, eps=r * eps).movedim(-1, 1)


def denoising_errors(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    r"""Computes the squared error of a denoising network, averaged over each frame.

    .. math:: e = \left\langle (F - F^*)^2 \right\rangle \qquad
        F^* = \frac{\sigma x - \alpha z}{\sqrt{\nu}} \ \text{where unknown} \qquad
        F^* = \frac{\sigma x}{\alpha + \sqrt{\nu}} \ \text{where known}

    with :math:`\nu = \alpha^2 + \sigma^2`.

    Arguments:
        output: The network's output F, with shape (B, C, L, *S).
        x: Clean windows, with the same shape.
        noise: The noise z, with the same shape.
        mask: True where a frame is known, with shape (B, L).
        alpha: The data's scale, with shape (B,).
        sigma: The noise's scale, with shape (B,).

    Returns:
        Errors, with shape (B, L).
    """
    alpha, sigma = (s.view(-1, *[1] * (x.ndim - 1)) for s in (alpha, sigma))
    known = mask.view(len(x), 1, -1, *[1] * (x.ndim - 3))
    scale = torch.sqrt(alpha.square() + sigma.square())
    target = torch.where(known, sigma / (alpha + scale) * x, (sigma * x - alpha * noise) / scale)
    return (output - target).square().transpose(1, 2).flatten(2).mean(dim=2)


def ema(
    averages: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], decays: Sequence[float]
) -> None:
    r"""Moves averages towards weights, in place: :math:`a \leftarrow a + (1 - d) (w - a)`.

    Arguments:
        averages: One list of tensors for each decay.
        weights: The tensors they follow.
        decays: The number d of each list.
    """
    for average, decay in zip(averages, decays, strict=True):
        torch._foreach_lerp_(list(average), list(weights), 1.0 - decay)


def seeded_normal(seeds: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Draws standard normal noise from torch's generator for each seed.

    Arguments:
        seeds: The seed of each sample, with shape (B,), int64, on the CPU.
        shape: The shape of a sample.
        device: Where the noise is drawn; a GPU draws other noise than a CPU.

    Returns:
        Noise in float32, with shape (B, *shape).
    """
    noise = torch.empty((len(seeds), *shape), device=device)
    for x, seed in zip(noise, seeds.tolist()):
        torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), out=x)
    return noise
