r"""Standard normal noise of many samples, each from its own seed, in one launch.

Philox 4x32 with 10 rounds, its key the sample's seed, its counter the place in the sample, gives
four words w; each two of them two numbers by Box and Muller's method,

.. math:: z = \sqrt{-2 \log u} \, (\cos 2 \pi v, \sin 2 \pi v) \qquad u = 2^{-32} (w + 1/2)
    \qquad v = 2^{-32} w' .

What a sample draws depends on its seed alone. The dispatcher has no choice here: noise
is the same whichever kernels run. Bytes an element: 4.

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

__all__ = ["seeded_normal"]

BLOCK = 512
"""Calls of the generator in a program: 4 for each of its 128 threads."""


@triton.jit
def _pair(w, v):
    radius = tl.sqrt(-2.0 * tl.log((w.to(tl.float32) + 0.5) * 2.3283064365386963e-10))
    angle = v.to(tl.float32) * 1.4629180792671596e-9
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _kernel(seeds, out, size, BLOCK: tl.constexpr):
    sample = tl.program_id(1).to(tl.int64)
    counter = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seeds + sample), low, high, zero, zero, n_rounds=10)
    a, b = _pair(w0, w1)
    c, d = _pair(w2, w3)
    place = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, BLOCK)
    row = out + sample * size
    tl.store(row + place, a, mask=place < size)
    tl.store(row + place + BLOCK, b, mask=place + BLOCK < size)
    tl.store(row + place + 2 * BLOCK, c, mask=place + 2 * BLOCK < size)
    tl.store(row + place + 3 * BLOCK, d, mask=place + 3 * BLOCK < size)


def seeded_normal(seeds: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Noise, float32, with shape (B, ...), from seeds (B,) on the CPU."""
    out = torch.empty((len(seeds), *shape), device=device)
    size = shape.numel()
    with torch.cuda.device_of(out):
        _kernel[triton.cdiv(size, 4 * BLOCK), len(seeds)](
            seeds.to(device, non_blocking=True), out, size, BLOCK=BLOCK
        )
    return out
