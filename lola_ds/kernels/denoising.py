r"""The errors of a denoising network in one pass: its target is formed where it is compared.

With :math:`s = \sqrt{\alpha^2 + \sigma^2}`, the target of each element is

.. math:: F^* = \frac{\sigma}{\alpha + s} \, x \ \text{in known frames} \qquad
    F^* = \frac{\sigma}{s} \, x - \frac{\alpha}{s} \, z \ \text{elsewhere}

and the error of a frame the mean of :math:`(F - F^*)^2` over its n elements; backwards
:math:`\bar{F} = 2 \bar{e} \, (F - F^*) / n`. Neither target nor difference is stored.

Bytes an element: 12 forward, 16 backward.
"""

from __future__ import annotations

# Triton types a launch as a call of the kernel, its sizes as constants of the kernel's own type.
# pyright: reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportUnboundVariable=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from lola_ds.kernels.operator import operator

__all__ = ["denoising_errors", "squared_errors", "squared_errors_backward"]

BLOCK = 1024


@triton.jit
def _kernel(
    output, x, noise, mask, alpha, sigma, weight, result, elements, points,
    BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame, frames = tl.program_id(1), tl.num_programs(1)
    sample = tl.program_id(2).to(tl.int64)
    row = sample * frames + frame
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = e < elements
    channel, point = e // points, e % points
    place = sample * frames * elements + (channel * frames + frame) * points + point
    known = tl.load(mask + row) != 0
    a, s = tl.load(alpha + sample), tl.load(sigma + sample)
    total = tl.sqrt(a * a + s * s)
    clean = tl.load(x + place, mask=here, other=0.0)
    z = tl.load(noise + place, mask=here, other=0.0)
    target = tl.where(known, s / (a + total) * clean, (s * clean - a * z) / total)
    error = tl.load(output + place, mask=here, other=0.0).to(tl.float32) - target
    if BACKWARD:
        tl.store(result + place, error * tl.load(weight + row), mask=here)
    else:
        square = tl.where(here, error * error, 0.0)
        tl.store(result + row * tl.num_programs(0) + tl.program_id(0), tl.sum(square, axis=0))


def _launch(tensors: tuple[Tensor, ...], weight: Tensor | None, result: Tensor) -> None:
    output, x, noise, mask, alpha, sigma = (t.contiguous() for t in tensors)
    B, channels, frames = x.shape[:3]
    elements = x[0].numel() // frames
    with torch.cuda.device_of(x):
        _kernel[triton.cdiv(elements, BLOCK), frames, B](
            output, x, noise, mask.view(torch.uint8), alpha, sigma,
            alpha if weight is None else weight.contiguous(), result,
            elements, elements // channels, BACKWARD=weight is not None, BLOCK=BLOCK,
        )  # fmt: skip


@operator("denoising_errors")
def squared_errors(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The kernel; see `reference.denoising_errors`."""
    B, _, frames = x.shape[:3]
    elements = x[0].numel() // frames
    sums = x.new_empty(B, frames, triton.cdiv(elements, BLOCK))
    _launch((output, x, noise, mask, alpha, sigma), None, sums)
    return sums.sum(dim=2) / elements


@squared_errors.register_fake
def _(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    return x.new_empty(len(x), x.shape[2])


@operator("denoising_errors_backward")
def squared_errors_backward(
    output: Tensor,
    x: Tensor,
    noise: Tensor,
    mask: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
) -> Tensor:
    """Each element's error times its frame's weight (B, L), in the dtype of the output."""
    grad = torch.empty_like(output, memory_format=torch.contiguous_format)
    _launch((output, x, noise, mask, alpha, sigma), weight, grad)
    return grad


@squared_errors_backward.register_fake
def _(
    output: Tensor,
    x: Tensor,
    noise: Tensor,
    mask: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
) -> Tensor:
    return torch.empty_like(output, memory_format=torch.contiguous_format)


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple:
    output, x, *others = ctx.saved_tensors
    weight = 2 * grad / (x[0].numel() // x.shape[2])
    return squared_errors_backward(output, x, *others, weight), *[None] * 5


squared_errors.register_autograd(_backward, setup_context=_save)


def denoising_errors(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """As `reference.denoising_errors`, by the kernel."""
    return squared_errors(output, x, noise, mask, alpha, sigma)
