r"""The denoising loss in one pass: the network's target is formed where it is compared.

With :math:`s = \sqrt{\alpha^2 + \sigma^2}`, the target of each element is

.. math:: F^* = \frac{\sigma}{\alpha + s} \, x \ \text{in known frames} \qquad
    F^* = \frac{\sigma}{s} \, x - \frac{\alpha}{s} \, z \ \text{elsewhere}

and the loss of a sample the mean of :math:`(F - F^*)^2` over the n elements that count; backwards
:math:`\bar{F} = 2 \bar{\ell} \, (F - F^*) / n`. Neither target nor difference is stored.

Bytes an element: 12 forward, 16 backward.
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

BLOCK = 4096


@triton.jit
def _kernel(
    output, x, noise, mask, alpha, sigma, weight, result, size, frames, points,
    KNOWN: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = sample * size + e
    here = e < size
    known = tl.load(mask + sample * frames + e // points % frames, mask=here, other=0) != 0
    a, s = tl.load(alpha + sample), tl.load(sigma + sample)
    total = tl.sqrt(a * a + s * s)
    clean = tl.load(x + place, mask=here, other=0.0)
    z = tl.load(noise + place, mask=here, other=0.0)
    target = tl.where(known, s / (a + total) * clean, (s * clean - a * z) / total)
    error = tl.load(output + place, mask=here, other=0.0).to(tl.float32) - target
    if not KNOWN:
        error = tl.where(known, 0.0, error)
    if BACKWARD:
        tl.store(result + place, error * tl.load(weight + sample), mask=here)
    else:
        square = tl.where(here, error * error, 0.0)
        row = sample * tl.num_programs(0) + tl.program_id(0)
        tl.store(result + row, tl.sum(square, axis=0))


def _launch(
    tensors: tuple[Tensor, ...], weight: Tensor | None, result: Tensor, known: bool
) -> None:
    output, x, noise, mask, alpha, sigma = (t.contiguous() for t in tensors)
    B, _, frames = x.shape[:3]
    size = x[0].numel()
    _kernel[triton.cdiv(size, BLOCK), B](
        output, x, noise, mask.view(torch.uint8), alpha, sigma,
        alpha if weight is None else weight.contiguous(), result,
        size, frames, x[0, 0, 0].numel(),
        KNOWN=known, BACKWARD=weight is not None, BLOCK=BLOCK,
    )  # fmt: skip


@torch.library.custom_op("lola_ds::denoising_error", mutates_args=())
def squared_error(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor,
    known: bool,
) -> Tensor:  # fmt: skip
    """The sum of each sample's squared errors, with shape (B,), float32."""
    sums = x.new_empty(len(x), triton.cdiv(x[0].numel(), BLOCK))
    _launch((output, x, noise, mask, alpha, sigma), None, sums, known)
    return sums.sum(dim=1)


@squared_error.register_fake
def _(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor,
    known: bool,
) -> Tensor:  # fmt: skip
    return x.new_empty(len(x))


@torch.library.custom_op("lola_ds::denoising_error_backward", mutates_args=())
def squared_error_backward(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor,
    known: bool, weight: Tensor,
) -> Tensor:  # fmt: skip
    """Each element's error times its sample's weight, in the dtype of the output."""
    grad = torch.empty_like(output, memory_format=torch.contiguous_format)
    _launch((output, x, noise, mask, alpha, sigma), weight, grad, known)
    return grad


@squared_error_backward.register_fake
def _(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor,
    known: bool, weight: Tensor,
) -> Tensor:  # fmt: skip
    return torch.empty_like(output, memory_format=torch.contiguous_format)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.known = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor) -> tuple:
    return squared_error_backward(*ctx.saved_tensors, ctx.known, 2 * grad), *[None] * 6


squared_error.register_autograd(_backward, setup_context=_save)


def denoising_loss(
    output: Tensor,
    x: Tensor,
    noise: Tensor,
    mask: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    known: bool = True,
) -> Tensor:
    """As `reference.denoising_loss`, by the kernel."""
    count = mask.numel() // len(mask) if known else (~mask).flatten(1).sum(dim=1)
    share = x[0].numel() // x.shape[2]
    return squared_error(output, x, noise, mask, alpha, sigma, known) / (count * share)
