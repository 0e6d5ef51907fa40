r"""Normalised and rotated queries and keys, from the packed projection, in one pass.

For each token, head and pair :math:`(2i, 2i + 1)` of features, with :math:`r = (\langle q^2 \rangle
+ \epsilon)^{-1/2}` and the angle :math:`\varphi_i = \sum_n p_n \theta_{ni}`,

.. math:: q' = R(\varphi) \, r \, q

and backwards, with the gradient :math:`g` with respect to :math:`q'`,

.. math:: \bar{q} = r \, R(\varphi)^T \left( g - q' \langle g \, q' \rangle \right) \qquad
    \bar{\varphi}_i = g_{2i+1} q'_{2i} - g_{2i} q'_{2i+1}  \qquad
    \bar{\theta}_{ni} = \sum_{b, t} p_n \bar{\varphi}_i

since a rotation changes no mean of products. So the outputs and r, one float32 a head, are all that
the backward keeps: attention keeps the outputs anyway, and the packed projection is freed.
The values are copied, which costs a third of the pass: were they a view, the whole packed tensor
would live until the backward. Where there is none, they are one.

Bytes a token for H channels of 2 bytes: 12 H forward, 16 H backward. A program takes a tile of
tokens of one head and walks over samples, so that cosines and sines, and the sum over samples of
the angles' gradient, stay in registers. Heads are the fastest axis of the grid: neighbouring
programs read neighbouring bytes. Sums over programs are finished by `sum`: no atomics, and the same
bits each time.
"""

# Triton types a launch as a call of the kernel, its sizes as constants of the kernel's own type.
# pyright: reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportUnboundVariable=false, reportCallIssue=false

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lola_ds.kernels.operator import operator

__all__ = ["qk_norm_rope", "rotate_qk", "rotate_qk_backward"]

TILE = 1024
"""Elements of a tile: 8 for each of the 128 threads of a program."""
PROGRAMS = 8192
"""Programs that fill a large GPU several times over; beyond them, each walks over more samples."""


@triton.jit
def _angles(
    coordinates, theta, t, head, T,
    HEADS: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
    BLOCK_T: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Angles of a tile of tokens in a head, (BLOCK_T, PAIRS)."""
    i = tl.arange(0, PAIRS)
    angles = tl.zeros((BLOCK_T, PAIRS), tl.float32)
    for n in tl.static_range(N):
        p = tl.load(coordinates + t * N + n, mask=t < T, other=0.0)
        column = (n * HEADS + head) * (D // 2) + i
        frequency = tl.load(theta + column, mask=i < D // 2, other=0.0)
        angles += p[:, None] * frequency[None, :]
    return angles


@triton.jit
def _turn(x, cos, sin, BLOCK_T: tl.constexpr, PAIRS: tl.constexpr):
    """Rotates the neighbouring pairs of (BLOCK_T, 2 PAIRS) features."""
    a, b = tl.split(tl.reshape(x, (BLOCK_T, PAIRS, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (BLOCK_T, 2 * PAIRS))


@triton.jit
def _forward_kernel(
    qkv, coordinates, theta, q, k, v, rstd, B, T, samples, eps,
    HEADS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_T: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    f = tl.arange(0, 2 * PAIRS)
    tile = (t < T)[:, None] & (f < D)[None, :]
    if N > 0:
        angles = _angles(coordinates, theta, t, head, T, HEADS, D, N, BLOCK_T, PAIRS)
        cos, sin = tl.cos(angles), tl.sin(angles)
    for sample in range(samples):
        b = tl.program_id(2) * samples + sample
        token = (b * T + t).to(tl.int64)
        here = tile & (b < B)
        out = (token * HEADS + head)[:, None] * D + f[None, :]
        for part in tl.static_range(PARTS):
            packed = ((token * 3 + part) * HEADS + head)[:, None] * D + f[None, :]
            x = tl.load(qkv + packed, mask=here, other=0.0)
            if part == 2:
                tl.store(v + out, x, mask=here)
            else:
                x = x.to(tl.float32)
                if NORM:
                    r = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
                    x = x * r[:, None]
                    place = (token * 2 + part) * HEADS + head
                    tl.store(rstd + place, r, mask=(t < T) & (b < B))
                if N > 0:
                    x = _turn(x, cos, sin, BLOCK_T, PAIRS)
                if part == 0:
                    tl.store(q + out, x, mask=here)
                else:
                    tl.store(k + out, x, mask=here)


@triton.jit
def _backward_kernel(
    q, k, rstd, coordinates, theta, grad_q, grad_k, grad_v, grad_qkv, grad_theta, B, T, samples,
    HEADS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr,
    BLOCK_T: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    f = tl.arange(0, 2 * PAIRS)
    tile = (t < T)[:, None] & (f < D)[None, :]
    if N > 0:
        angles = _angles(coordinates, theta, t, head, T, HEADS, D, N, BLOCK_T, PAIRS)
        cos, sin = tl.cos(angles), tl.sin(angles)
        grad_angles = tl.zeros((BLOCK_T, PAIRS), tl.float32)
    for sample in range(samples):
        b = tl.program_id(2) * samples + sample
        token = (b * T + t).to(tl.int64)
        here = tile & (b < B)
        source = (token * HEADS + head)[:, None] * D + f[None, :]
        for part in tl.static_range(3):
            packed = ((token * 3 + part) * HEADS + head)[:, None] * D + f[None, :]
            if part == 2:
                g = tl.load(grad_v + source, mask=here, other=0.0)
            else:
                if part == 0:
                    y = tl.load(q + source, mask=here, other=0.0).to(tl.float32)
                    g = tl.load(grad_q + source, mask=here, other=0.0).to(tl.float32)
                else:
                    y = tl.load(k + source, mask=here, other=0.0).to(tl.float32)
                    g = tl.load(grad_k + source, mask=here, other=0.0).to(tl.float32)
                if N > 0:
                    y_a, y_b = tl.split(tl.reshape(y, (BLOCK_T, PAIRS, 2)))
                    g_a, g_b = tl.split(tl.reshape(g, (BLOCK_T, PAIRS, 2)))
                    grad_angles += g_b * y_a - g_a * y_b
                if NORM:
                    g = g - y * (tl.sum(g * y, axis=1) / D)[:, None]
                if N > 0:
                    g = _turn(g, cos, -sin, BLOCK_T, PAIRS)
                if NORM:
                    place = (token * 2 + part) * HEADS + head
                    r = tl.load(rstd + place, mask=(t < T) & (b < B), other=0.0)
                    g = g * r[:, None]
            tl.store(grad_qkv + packed, g, mask=here)
    if N > 0:
        i = tl.arange(0, PAIRS)
        row = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        for n in tl.static_range(N):
            p = tl.load(coordinates + t * N + n, mask=t < T, other=0.0)
            total = tl.sum(p[:, None] * grad_angles, axis=0)
            column = (n * HEADS + head) * (D // 2) + i
            place = row * (N * HEADS * (D // 2)) + column
            tl.store(grad_theta + place, total, mask=i < D // 2)


@functools.cache
def _launch(B: int, T: int, heads: int, d: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid, and the sizes every launch shares."""
    pairs = triton.next_power_of_2(d // 2)
    block = min(max(1, TILE // (2 * pairs)), triton.next_power_of_2(T))
    tiles = triton.cdiv(T, block)
    samples = min(B, max(1, B * tiles * heads // PROGRAMS))
    sizes = {"HEADS": heads, "D": d, "BLOCK_T": block, "PAIRS": pairs}
    return (heads, tiles, triton.cdiv(B, samples)), {"samples": samples, **sizes}


@operator("qk_norm_rope")
def rotate_qk(
    qkv: Tensor, coordinates: Tensor, theta: Tensor, norm: bool, eps: float, values: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel; see `reference.qk_norm_rope`.

    Arguments:
        qkv: Queries, keys and values, with shape (B, T, 3, h, d).
        coordinates: The tokens' coordinates, with shape (T, N), float32; N is 0 for no rotation.
        theta: The frequencies of each axis, with shape (N, h d / 2), float32.
        norm: Whether queries and keys are normalised.
        eps: Added to their mean square.
        values: Whether the values are copied.

    Returns:
        Queries, keys and values, each with shape (B, T, h, d), values that are not copied empty;
        and r, with shape (B, T, 2, h).
    """
    B, T, _, heads, d = qkv.shape
    q, k = (qkv.new_empty(B, T, heads, d) for _ in range(2))
    v = qkv.new_empty((B, T, heads, d) if values else 0)
    rstd = qkv.new_empty((B, T, 2, heads) if norm else 0, dtype=torch.float32)
    grid, sizes = _launch(B, T, heads, d)
    with torch.cuda.device_of(qkv):
        _forward_kernel[grid](
            qkv.contiguous(), coordinates.contiguous(), theta.contiguous(), q, k, v, rstd,
            B, T, eps=eps, N=len(theta), NORM=norm, PARTS=3 if values else 2, **sizes,
        )  # fmt: skip
    return q, k, v, rstd


@rotate_qk.register_fake
def _(
    qkv: Tensor, coordinates: Tensor, theta: Tensor, norm: bool, eps: float, values: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, _, heads, d = qkv.shape
    q, k = (qkv.new_empty(B, T, heads, d) for _ in range(2))
    v = qkv.new_empty((B, T, heads, d) if values else (0,))
    return q, k, v, qkv.new_empty((B, T, 2, heads) if norm else (0,), dtype=torch.float32)


@operator("qk_norm_rope_backward")
def rotate_qk_backward(
    q: Tensor,
    k: Tensor,
    rstd: Tensor,
    coordinates: Tensor,
    theta: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    norm: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the packed projection and to theta, from those of the outputs."""
    B, T, heads, d = q.shape
    grid, sizes = _launch(B, T, heads, d)
    grad_qkv = q.new_empty(B, T, 3, heads, d)
    grad_theta = theta.new_empty(grid[1] * grid[2], *theta.shape)
    with torch.cuda.device_of(q):
        _backward_kernel[grid](
            q, k, rstd, coordinates.contiguous(), theta.contiguous(),
            grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous(), grad_qkv, grad_theta,
            B, T, N=len(theta), NORM=norm, **sizes,
        )  # fmt: skip
    return grad_qkv, grad_theta.sum(dim=0)


@rotate_qk_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    rstd: Tensor,
    coordinates: Tensor,
    theta: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    norm: bool,
) -> tuple[Tensor, Tensor]:
    B, T, heads, d = q.shape
    return q.new_empty(B, T, 3, heads, d), torch.empty_like(theta)


def _save(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, coordinates, theta, ctx.norm, _, _ = inputs
    q, k, _, rstd = output
    ctx.save_for_backward(q, k, rstd, coordinates, theta)


def _backward(ctx, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, _: Tensor) -> tuple:
    gradients = rotate_qk_backward(*ctx.saved_tensors, grad_q, grad_k, grad_v, ctx.norm)
    grad_qkv, grad_theta = gradients
    return grad_qkv, None, grad_theta, None, None, None


rotate_qk.register_autograd(_backward, setup_context=_save)


def qk_norm_rope(
    qkv: Tensor,
    coordinates: Tensor | None = None,
    theta: Tensor | None = None,
    norm: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.qk_norm_rope`, by the kernel."""
    if coordinates is None or theta is None:
        coordinates = qkv.new_empty(qkv.shape[1], 0, dtype=torch.float32)
        theta = qkv.new_empty(0, qkv.shape[3] * qkv.shape[4] // 2, dtype=torch.float32)
    values = torch.is_grad_enabled()
    q, k, v, _ = rotate_qk(qkv, coordinates, theta, norm, eps, values)
    return q, k, v if values else qkv[:, :, 2]
