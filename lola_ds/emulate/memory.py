"""Memory that running a network takes, and its release."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["release_memory", "working_bytes"]

# On a CPU, where nothing counts allocations: how many tensors of the largest activation's size are
# alive at a time, and how many graphs of all activations gradients (of gradients) need.
_ALIVE, _GRAPHS = 6, 3


def working_bytes(
    module: nn.Module, run: Callable[[], object], device: torch.device, gradients: bool = False
) -> int:
    """Returns the memory that `run` takes beyond what is allocated before, its result included.

    Measured on a GPU. On a CPU estimated from the activations of `module`: six of the largest, or
    with `gradients` three times all of them.

    Arguments:
        module: The network that runs.
        run: Runs the network.
        device: The device of the network.
        gradients: Whether `run` differentiates the network.

    Returns:
        The number of bytes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    sizes = [0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    hooks = [m.register_forward_hook(look) for m in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return _GRAPHS * sum(sizes) if gradients else _ALIVE * max(sizes)


def release_memory() -> None:
    """Gives freed memory of the CPU back to the system.

    Between large tensors that come and go, small ones that stay keep glibc's allocator from giving
    anything back by itself: a loop over windows then grows from one to the next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
