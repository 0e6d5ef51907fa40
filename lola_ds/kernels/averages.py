r"""Moving averages of many tensors, several half-lives at once, in one launch.

.. math:: a_k \leftarrow a_k + (1 - d_k) (w - a_k)

The weights are read once for all averages: 4 (1 + 2 K) bytes a weight for K of them, where torch's
multi-tensor operation, one average after another, moves 12 K. The kernel finds tensors through a
table of their addresses.
"""

# Triton types a launch as a call of the kernel, its sizes as constants of the kernel's own type.
# pyright: reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportUnboundVariable=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["ema"]

BLOCK, PROGRAMS = 2048, 8192
"""Elements of a program's step, and the programs that tensors share, be they one or hundreds."""


@triton.jit
def _move(weights, row, gains, place, mask, ALIGN: tl.constexpr, AVERAGES: tl.constexpr):
    w = tl.load(weights + place, mask=mask)
    for k in tl.static_range(AVERAGES):
        average = tl.load(row + 2 + k).to(tl.pointer_type(tl.float32))
        average = tl.multiple_of(average, ALIGN) + place
        a = tl.load(average, mask=mask)
        tl.store(average, a + tl.load(gains + k) * (w - a), mask=mask)


@triton.jit
def _kernel(table, gains, BLOCK: tl.constexpr, ALIGN: tl.constexpr, AVERAGES: tl.constexpr):
    row = table + tl.program_id(0) * (AVERAGES + 2)
    size = tl.load(row)
    weights = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), ALIGN)
    lane = tl.arange(0, BLOCK)
    whole = size // BLOCK * BLOCK  # without a mask, which would part the loads
    first, step = tl.program_id(1) * BLOCK, tl.num_programs(1) * BLOCK
    for start in range(first, whole, step):
        _move(weights, row, gains, start + lane, None, ALIGN, AVERAGES)
    if whole % step == first:
        place = whole + lane
        _move(weights, row, gains, place, place < size, ALIGN, AVERAGES)


def ema(
    averages: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], decays: Sequence[float]
) -> None:
    """As `reference.ema`, by the kernel; all tensors contiguous, float32, on one device.

    Raises:
        ValueError: A tensor of another dtype, or one that is not contiguous.
    """
    for tensor in (*weights, *(a for average in averages for a in average)):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"ema takes contiguous float32 tensors, not {tensor.dtype} with strides "
                f"{tensor.stride()}"
            )
    rows = [
        [w.numel(), w.data_ptr(), *(average[i].data_ptr() for average in averages)]
        for i, w in enumerate(weights)
    ]
    align = 16 if all(address % 16 == 0 for row in rows for address in row[1:]) else 4
    device = weights[0].device
    gains = _send([1.0 - d for d in decays], torch.float32, device)
    table = _send(rows, torch.int64, device)
    longest = max(w.numel() for w in weights)
    programs = min(max(1, PROGRAMS // len(weights)), triton.cdiv(longest, BLOCK))
    with torch.cuda.device_of(weights[0]):
        _kernel[len(weights), programs](
            table, gains, BLOCK=BLOCK, ALIGN=align, AVERAGES=len(decays)
        )


def _send(numbers: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers on the device, for which the processor does not wait."""
    pinned = device.type == "cuda"
    here = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned)
    return here.to(device, non_blocking=True)
