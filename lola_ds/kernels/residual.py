r"""A gated branch and a gated skip input added to the stream, in one pass.

With :math:`u = (1 + c^2)^{-1/2}` and :math:`w = (1 + d^2)^{-1/2}`,

.. math:: x' = u (x + c \, y) \qquad x'' = w (x' + d \, s)

and backwards, from the gradient g with respect to x'', with :math:`g' = w \, g`,

.. math::
    \bar{x} = u \, g' \qquad \bar{y} = c \, u \, g' \qquad \bar{s} = d \, g' \qquad
    \bar{c} = \sum_t u \, g' (y - c \, u \, x') \qquad \bar{d} = \sum_t g' (s - d \, w \, x'') .

Only the inputs are kept; x' and x'' are formed again. A program of the backward walks over a chunk
of one sample's tokens with its channels' sums in registers and writes them once; `sum` adds the
chunks, in the same order each time.

Bytes an element, the stream in 4 bytes and the branch in 2: 14 forward, 24 backward.
"""

# Triton types a launch as a call of the kernel, its sizes as constants of the kernel's own type.
# pyright: reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportUnboundVariable=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lola_ds.kernels.operator import operator

__all__ = ["add_gated", "add_gated_backward", "gated_residual", "sum_to"]

CHANNELS, TOKENS = 256, 8
"""A tile of the forward, 16 elements a thread."""
WALKED, CHUNK, STAGES = 512, 64, 3
"""Channels and tokens of a program of the backward, which walks over the tokens one by one, four
elements a thread, while so many less one are on their way: the sums take the registers."""


@triton.jit
def _gates(c, d, sample, f, stride_c, stride_d, H, SKIP: tl.constexpr):
    """c, d and the factors u, w of a row of channels."""
    gate = tl.load(c + sample * stride_c + f, mask=f < H, other=0.0).to(tl.float32)
    other = gate * 0
    if SKIP:
        other = tl.load(d + sample * stride_d + f, mask=f < H, other=0.0).to(tl.float32)
    return gate, other, tl.rsqrt(1 + gate * gate), tl.rsqrt(1 + other * other)


@triton.jit
def _forward_kernel(
    x, y, c, skip, d, out, T, H, stride_c, stride_d,
    SKIP: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    sample = tl.program_id(2).to(tl.int64)
    gate, other, u, w = _gates(c, d, sample, f, stride_c, stride_d, H, SKIP)
    here = (t < T)[:, None] & (f < H)[None, :]
    place = (sample * T + t)[:, None] * H + f[None, :]
    branch = tl.load(y + place, mask=here, other=0.0).to(tl.float32)
    z = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    z = (z + gate[None, :] * branch) * u[None, :]
    if SKIP:
        s = tl.load(skip + place, mask=here, other=0.0).to(tl.float32)
        z = (z + other[None, :] * s) * w[None, :]
    tl.store(out + place, z, mask=here)


@triton.jit
def _backward_kernel(
    x, y, c, skip, d, grad, grad_x, grad_y, grad_skip, grad_c, grad_d, T, H, stride_c, stride_d,
    SKIP: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    sample = tl.program_id(2).to(tl.int64)
    gate, other, u, w = _gates(c, d, sample, f, stride_c, stride_d, H, SKIP)
    sum_c = tl.zeros((CHANNELS,), tl.float32)
    sum_d = tl.zeros((CHANNELS,), tl.float32)
    first = tl.program_id(1) * CHUNK
    for t in tl.range(first, min(first + CHUNK, T), num_stages=STAGES):
        place = (sample * T + t) * H + f
        g = tl.load(grad + place, mask=f < H, other=0.0).to(tl.float32) * w
        branch = tl.load(y + place, mask=f < H, other=0.0).to(tl.float32)
        z = tl.load(x + place, mask=f < H, other=0.0).to(tl.float32)
        z = (z + gate * branch) * u
        if SKIP:
            s = tl.load(skip + place, mask=f < H, other=0.0).to(tl.float32)
            sum_d += g * (s - other * w * w * (z + other * s))
            tl.store(grad_skip + place, g * other, mask=f < H)
        sum_c += g * u * (branch - gate * u * z)
        tl.store(grad_x + place, g * u, mask=f < H)
        tl.store(grad_y + place, g * u * gate, mask=f < H)
    row = (sample * tl.num_programs(1) + tl.program_id(1)) * H + f
    tl.store(grad_c + row, sum_c, mask=f < H)
    if SKIP:
        tl.store(grad_d + row, sum_d, mask=f < H)


def _sample_stride(gate: Tensor) -> int:
    """The stride of (B, 1, H) gates along samples; 0 where one serves all."""
    return 0 if gate.shape[0] == 1 else gate.stride(0)


def _channel_rows(gate: Tensor) -> Tensor:
    """The gates, copied if their channels are not neighbours in memory."""
    return gate if gate.stride(-1) == 1 else gate.contiguous()


@operator("gated_residual")
def add_gated(x: Tensor, y: Tensor, c: Tensor, skip: Tensor, d: Tensor) -> Tensor:
    """The kernel; see `reference.gated_residual`. An empty `skip` stands for none."""
    B, T, H = x.shape
    c, d = _channel_rows(c), _channel_rows(d)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        _forward_kernel[triton.cdiv(H, CHANNELS), triton.cdiv(T, TOKENS), B](
            x.contiguous(), y.contiguous(), c, skip.contiguous(), d, out, T, H,
            _sample_stride(c), _sample_stride(d),
            SKIP=skip.numel() > 0, TOKENS=TOKENS, CHANNELS=CHANNELS,
        )  # fmt: skip
    return out


@add_gated.register_fake
def _(x: Tensor, y: Tensor, c: Tensor, skip: Tensor, d: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("gated_residual_backward")
def add_gated_backward(
    x: Tensor, y: Tensor, c: Tensor, skip: Tensor, d: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, y, c, skip and d, from that of the output."""
    B, T, H = x.shape
    c, d = _channel_rows(c), _channel_rows(d)
    chunks, width = triton.cdiv(T, CHUNK), min(WALKED, triton.next_power_of_2(H))
    grad_x, grad_y, grad_skip = (torch.empty(a.shape, dtype=a.dtype, device=a.device)
                                 for a in (x, y, skip))  # fmt: skip
    grad_c = x.new_empty(B, chunks, H, dtype=torch.float32)
    grad_d = torch.empty_like(grad_c) if skip.numel() else grad_c
    with torch.cuda.device_of(x):
        _backward_kernel[triton.cdiv(H, width), chunks, B](
            x.contiguous(), y.contiguous(), c, skip.contiguous(), d, grad.contiguous(),
            grad_x, grad_y, grad_skip, grad_c, grad_d, T, H, _sample_stride(c), _sample_stride(d),
            SKIP=skip.numel() > 0, CHUNK=CHUNK, CHANNELS=width, STAGES=STAGES,
        )  # fmt: skip
    total_c = sum_to(grad_c, c)
    return grad_x, grad_y, total_c, grad_skip, sum_to(grad_d, d) if skip.numel() else d.clone()


@add_gated_backward.register_fake
def _(
    x: Tensor, y: Tensor, c: Tensor, skip: Tensor, d: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    plain = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for a in (x, y, c, skip, d))
    return tuple(plain)  # type: ignore[return-value]


def sum_to(partial: Tensor, gate: Tensor) -> Tensor:
    """Adds the chunks' sums (B, chunks, H) to a gradient shaped as a gate (B or 1, 1, H)."""
    axes = [0, 1] if gate.shape[0] == 1 else [1]
    return partial.sum(dim=axes, keepdim=True).to(gate.dtype)


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, c, skip, d = ctx.saved_tensors
    gradients = add_gated_backward(x, y, c, skip, d, grad)
    return gradients if skip.numel() else (*gradients[:3], None, None)


add_gated.register_autograd(_backward, setup_context=_save)


def gated_residual(
    x: Tensor, y: Tensor, c: Tensor, skip: Tensor | None = None, d: Tensor | None = None
) -> Tensor:
    """As `reference.gated_residual`, by the kernel."""
    if skip is None or d is None:
        return add_gated(x, y, c, x.new_empty(0), c)
    return add_gated(x, y, c, skip, d)
