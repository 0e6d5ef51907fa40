r"""Layer normalisation over the last axis, modulated or not, in one pass.

With the mean :math:`\mu`, :math:`r = (\mathbb{V}[x] + \epsilon)^{-1/2}` and :math:`n = r (x -
\mu)`,

.. math:: y = (1 + a) \, n + b

and backwards, from the gradient g with respect to y, with :math:`h = (1 + a) \, g`,

.. math:: \bar{x} = r \left( h - \langle h \rangle - \frac{n}{M} \sum h \, n \right) \qquad
    \bar{a} = \sum_t g \, n \qquad \bar{b} = \sum_t g

The variance is the mean square of :math:`x - \mu` (two passes, in registers), over M = H for tokens
and M = C - 1 for the channels of a field; mean and r are kept in float32. As in `residual`, a
program of the backward walks over a chunk of tokens; `sum` adds the chunks.

Bytes an element, the stream in 4 bytes and the result in 2: 6 forward, 10 backward, and 16 where
the backward adds two other gradients on its way (`ModulateBranches`).
"""

# Triton types a launch as a call of the kernel, its sizes as constants of the kernel's own type.
# pyright: reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportUnboundVariable=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lola_ds.kernels.operator import operator
from lola_ds.kernels.residual import sum_to

__all__ = [
    "ModulateBranches",
    "Walk",
    "channel_norm",
    "modulate",
    "modulate_branches",
    "modulated_norm",
    "modulated_norm_backward",
    "rows_norm",
    "rows_norm_backward",
]

TILE = 4096
"""Elements of a tile of the forward, 32 a thread."""


class Walk(NamedTuple):
    """How a program of the backward walks over tokens.

    Attributes:
        tile: Elements of the tiles it takes, a token at least.
        tokens: Of all its tiles together.
        stages: Tiles that are on their way at a time.
    """

    tile: int
    tokens: int
    stages: int


MODULATED, PLAIN = Walk(1024, 64, 2), Walk(4096, 64, 2)
"""Token by token, where sums over them take the registers, and one tile a program."""
WIDEST = 8192
"""The largest H: a row is held in registers."""


@triton.jit
def _forward_kernel(
    x, a, b, out, mean, rstd, T, stride_a, stride_b, eps,
    H: tl.constexpr, CORRECTION: tl.constexpr, MODULATED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f = tl.arange(0, WIDTH)
    here = (t < T)[:, None] & (f < H)[None, :]
    row = sample * T + t
    place = row[:, None] * H + f[None, :]
    z = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    centre = tl.sum(z, axis=1) / H
    z = tl.where(here, z - centre[:, None], 0.0)
    r = tl.rsqrt(tl.sum(z * z, axis=1) / (H - CORRECTION) + eps)
    z = z * r[:, None]
    if MODULATED:
        scale = tl.load(a + sample * stride_a + f, mask=f < H, other=0.0).to(tl.float32)
        shift = tl.load(b + sample * stride_b + f, mask=f < H, other=0.0).to(tl.float32)
        z = (1 + scale)[None, :] * z + shift[None, :]
    tl.store(out + place, z, mask=here)
    tl.store(mean + row, centre, mask=t < T)
    tl.store(rstd + row, r, mask=t < T)


@triton.jit
def _backward_kernel(
    x, a, mean, rstd, grad, again, through, grad_x, grad_a, grad_b, T, stride_a,
    H: tl.constexpr, CORRECTION: tl.constexpr, MODULATED: tl.constexpr, FORKED: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, WIDTH)
    if MODULATED:
        scale = 1 + tl.load(a + sample * stride_a + f, mask=f < H, other=0.0).to(tl.float32)
        sum_a = tl.zeros((ROWS, WIDTH), tl.float32)
        sum_b = tl.zeros((ROWS, WIDTH), tl.float32)
    first = tl.program_id(0) * CHUNK
    for start in tl.range(first, min(first + CHUNK, T), ROWS, num_stages=STAGES):
        t = start + tl.arange(0, ROWS)
        here = (t < T)[:, None] & (f < H)[None, :]
        row = sample * T + t
        place = row[:, None] * H + f[None, :]
        centre = tl.load(mean + row, mask=t < T, other=0.0)
        r = tl.load(rstd + row, mask=t < T, other=0.0)
        n = (tl.load(x + place, mask=here, other=0.0).to(tl.float32) - centre[:, None]) * r[:, None]
        n = tl.where(here, n, 0.0)
        g = tl.load(grad + place, mask=here, other=0.0).to(tl.float32)
        if FORKED:
            g += tl.load(again + place, mask=here, other=0.0).to(tl.float32)
        if MODULATED:
            sum_a += g * n
            sum_b += g
            g = g * scale[None, :]
        g = (
            g
            - (tl.sum(g, axis=1) / H)[:, None]
            - n * (tl.sum(g * n, axis=1) / (H - CORRECTION))[:, None]
        )
        g = g * r[:, None]
        if FORKED:
            g += tl.load(through + place, mask=here, other=0.0).to(tl.float32)
        tl.store(grad_x + place, g, mask=here)
    if MODULATED:
        place = (sample * tl.num_programs(0) + tl.program_id(0)) * H + f
        tl.store(grad_a + place, tl.sum(sum_a, axis=0), mask=f < H)
        tl.store(grad_b + place, tl.sum(sum_b, axis=0), mask=f < H)


def _rows(T: int, width: int, tile: int) -> int:
    return max(1, min(tile // width, triton.next_power_of_2(T)))


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8


def _forward(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, correction: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises (B, T, H); empty `a` stands for no modulation."""
    B, T, H = x.shape
    width = triton.next_power_of_2(H)
    rows = _rows(T, width, TILE)
    out = x.new_empty(B, T, H, dtype=dtype)
    mean, rstd = (x.new_empty(B, T, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _forward_kernel[triton.cdiv(T, rows), B](
            x.contiguous(), a, b, out, mean, rstd, T, _stride(a), _stride(b), eps,
            H=H, CORRECTION=correction, MODULATED=a.numel() > 0, ROWS=rows, WIDTH=width,
            num_warps=_warps(width),
        )  # fmt: skip
    return out, mean, rstd


def _backward(
    x: Tensor,
    a: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad: Tensor,
    correction: int,
    walk: Walk,
    again: Tensor | None = None,
    through: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, and those to a and b as the chunks' sums (B, chunks, H)."""
    B, T, H = x.shape
    width = triton.next_power_of_2(H)
    rows = min(_rows(T, width, walk.tile), walk.tokens)
    chunks = triton.cdiv(T, walk.tokens)
    grad_x = x.new_empty(B, T, H)
    grad_a, grad_b = (
        x.new_empty((B, chunks, H) if a.numel() else 0, dtype=torch.float32) for _ in range(2)
    )
    forked = again is not None
    others = [grad if other is None else other.contiguous() for other in (again, through)]
    with torch.cuda.device_of(x):
        _backward_kernel[chunks, B](
            x.contiguous(), a, mean, rstd, grad.contiguous(), *others, grad_x, grad_a,
            grad_b, T, _stride(a),
            H=H, CORRECTION=correction, MODULATED=a.numel() > 0, FORKED=forked,
            CHUNK=walk.tokens, ROWS=rows, WIDTH=width, STAGES=walk.stages,
            num_warps=_warps(width),
        )  # fmt: skip
    return grad_x, grad_a, grad_b


def _stride(a: Tensor) -> int:
    """The stride of (B, 1, H) scales along samples; 0 where one serves all, or none do."""
    return 0 if a.numel() == 0 or a.shape[0] == 1 else a.stride(0)


def _dense(a: Tensor) -> Tensor:
    return a if a.stride(-1) == 1 else a.contiguous()


@operator("modulate")
def modulated_norm(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel; see `reference.modulate`. Returns y, mean and r."""
    return _forward(x, _dense(a), _dense(b), dtype, 0, eps)


@modulated_norm.register_fake
def _(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), mean, rstd


@operator("modulate_backward")
def modulated_norm_backward(
    x: Tensor,
    a: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad: Tensor,
    again: Tensor | None = None,
    through: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, a and b, from those of the outputs of `ModulateBranches`."""
    found = _backward(x, _dense(a), mean, rstd, grad, 0, MODULATED, again, through)
    grad_x, grad_a, grad_b = found
    return grad_x, sum_to(grad_a, a), sum_to(grad_b, a)


@modulated_norm_backward.register_fake
def _(
    x: Tensor,
    a: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad: Tensor,
    again: Tensor | None = None,
    through: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), a.new_empty(a.shape)


def _save_modulated(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, a, *_ = inputs
    ctx.save_for_backward(x, a, *output[1:])


def _backward_modulated(ctx, grad: Tensor, *_: Tensor) -> tuple:
    return *modulated_norm_backward(*ctx.saved_tensors, grad), None, None


modulated_norm.register_autograd(_backward_modulated, setup_context=_save_modulated)


def modulate(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> Tensor:
    """As `reference.modulate`, by the kernel."""
    return modulated_norm(x, a, b, dtype or x.dtype, eps)[0]


class ModulateBranches(torch.autograd.Function):
    """y, y once more and x itself, whose three gradients the backward adds in its one pass.

    Where y goes two ways and x goes on, as in a block of a transformer, each sum of two gradients
    would be a pass of its own: 12 bytes an element of the stream, and 6 of y, instead of 4 and 2.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `modulate_branches`."""
        y, mean, rstd = modulated_norm(x, a, b, dtype, eps)
        ctx.save_for_backward(x, a, mean, rstd)
        return y, y.view_as(y), x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor, again: Tensor, through: Tensor) -> tuple:
        """The gradients of x, a and b."""
        gradients = modulated_norm_backward(*ctx.saved_tensors, grad, again, through)
        return *gradients, None, None


def modulate_branches(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.modulate_branches`, by the kernel."""
    if torch.is_grad_enabled():
        return ModulateBranches.apply(x, a, b, dtype or x.dtype, eps)
    y = modulate(x, a, b, dtype, eps)
    return y, y, x


@operator("channel_norm")
def rows_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises rows (R, C), the variance over C - 1. Returns y, mean and r."""
    none = x.new_empty(0)
    out, mean, rstd = _forward(x[None], none, none, x.dtype, 1, eps)
    return out[0], mean[0], rstd[0]


@rows_norm.register_fake
def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@operator("channel_norm_backward")
def rows_norm_backward(x: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to the rows, from that of y."""
    return _backward(x[None], x.new_empty(0), mean[None], rstd[None], grad[None], 1, PLAIN)[0][0]


@rows_norm_backward.register_fake
def _(x: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_rows(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output[1:])


def _backward_rows(ctx, grad: Tensor, *_: Tensor) -> tuple:
    return rows_norm_backward(*ctx.saved_tensors, grad), None


rows_norm.register_autograd(_backward_rows, setup_context=_save_rows)


def channel_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """As `reference.channel_norm`, by the kernel; the result's channels are last in memory.

    So should those of `x` be: otherwise they are first copied, as torch's own normalisation does.
    """
    rows = x.movedim(1, -1)
    y = rows_norm(rows.reshape(-1, rows.shape[-1]), eps)[0]
    return y.view(rows.shape).movedim(-1, 1)
