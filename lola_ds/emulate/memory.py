"""How much memory running a network takes, to choose how much of it runs at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["working_bytes"]

# On a CPU, where nothing counts allocations: tensors of the largest activation's size at a time.
_ALIVE = 6


def working_bytes(module: nn.Module, run: Callable[[], object], device: torch.device) -> int:
    """The memory that `run` takes beyond what there was before, its result included.

    Measured on a GPU; on a CPU estimated as six of the largest activations of `module`, the only
    network that `run` should call.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    largest = 0

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    hooks = [m.register_forward_hook(look) for m in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return _ALIVE * largest
