"""Freezing of parameters."""

from __future__ import annotations

from torch import nn

__all__ = ["freeze_parameters"]


def freeze_parameters(module: nn.Module) -> nn.Module:
    """Turns a module's parameters into buffers of the same names.

    No optimizer, average or ZeRO stage sees a buffer, and gradients pass through it; it is saved
    and loaded with the other buffers.

    Returns:
        The module, changed in place.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module
