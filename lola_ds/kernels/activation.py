r"""SiLU and dropout in one pass, with a mask that is drawn again instead of kept.

.. math:: y = \frac{m}{1 - p} \, x \, s(x) \qquad
    \bar{x} = \frac{m}{1 - p} \, s(x) \left( 1 + x (1 - s(x)) \right) \bar{y}

with the logistic function s and a mask m that is 0 with probability p. Each 16 bits of a
counter-based generator decide one element, 8 elements a call, so that random numbers cost less than
the memory's time; p is therefore rounded to a multiple of 2^-16, and 1 - p with it. The generator
is Philox 4x32 with 7 rounds, its key the seed, its counter the element's place: the backward pass,
or a recomputation, draws the same mask from the same seed, whatever the device.

Bytes an element of 2 bytes: 4 forward, 6 backward. Torch's two kernels and mask move 13 and 13.

References:
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
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

__all__ = ["masked_silu", "masked_silu_backward", "silu_dropout"]

LEVELS = 1 << 16
ROWS = 512
"""Runs of 8 elements that a program handles: 4 for each of its 128 threads."""


@triton.jit
def _kernel(
    x, grad, seed, out, size, scale, threshold,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # A row is what one call of the generator decides and one thread reads: 8 neighbours.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    low, high = row.to(tl.uint32), (row >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed), low, high, zero, zero, n_rounds=7)
    column = tl.arange(0, 8)[None, :]
    first = tl.where(column < 2, w0[:, None], w1[:, None])
    last = tl.where(column < 6, w2[:, None], w3[:, None])
    word = tl.where(column < 4, first, last)
    keep = ((word >> (16 * (column % 2)).to(tl.uint32)) & 0xFFFF) >= threshold
    place = row[:, None] * 8 + column
    v = tl.load(x + place, mask=place < size, other=0.0).to(tl.float32)
    s = tl.sigmoid(v)
    if BACKWARD:
        g = tl.load(grad + place, mask=place < size, other=0.0).to(tl.float32)
        y = g * s * (1 + v * (1 - s))
    else:
        y = v * s
    tl.store(out + place, tl.where(keep, y * scale, 0.0), mask=place < size)


def _launch(x: Tensor, grad: Tensor | None, seed: Tensor, threshold: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x = x.contiguous()
    with torch.cuda.device_of(x):
        _kernel[(triton.cdiv(x.numel(), 8 * ROWS),)](
            x, x if grad is None else grad.contiguous(), seed, out, x.numel(),
            LEVELS / (LEVELS - threshold), threshold, BACKWARD=grad is not None, ROWS=ROWS,
        )  # fmt: skip
    return out


@operator("silu_dropout")
def masked_silu(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """The kernel.

    Arguments:
        x: Any shape.
        seed: One integer, on the device of `x`, so that the processor does not wait for it.
        threshold: The rate of dropout in multiples of 2^-16.

    Returns:
        A contiguous tensor of the same shape and dtype.
    """
    return _launch(x, None, seed, threshold)


@masked_silu.register_fake
def _(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("silu_dropout_backward")
def masked_silu_backward(x: Tensor, grad: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """The gradient with respect to `x`, from that of the output."""
    return _launch(x, grad, seed, threshold)


@masked_silu_backward.register_fake
def _(x: Tensor, grad: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    x, seed, ctx.threshold = inputs
    ctx.save_for_backward(x, seed)


def _backward(ctx, grad: Tensor) -> tuple:
    x, seed = ctx.saved_tensors
    return masked_silu_backward(x, grad, seed, ctx.threshold), None, None


masked_silu.register_autograd(_backward, setup_context=_save)


def silu_dropout(x: Tensor, p: float) -> Tensor:
    """Applies SiLU, then drops each element with probability `p`; the seed is torch's.

    Fields whose channels are last in memory stay so. They are handed on as rows: the compiler takes
    any four axes for a field's and would move the third one last.
    """
    seed = torch.randint(1 << 62, (1,), device=x.device)
    last = x.movedim(1, -1) if x.ndim > 1 else x
    if not x.is_contiguous() and last.is_contiguous():
        rows = masked_silu(last.flatten(0, -2), seed, round(p * LEVELS))
        return rows.view(last.shape).movedim(-1, 1)
    return masked_silu(x, seed, round(p * LEVELS))
