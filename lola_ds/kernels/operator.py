"""Kernels as operators of torch, for compiled graphs, autograd and fake tensors.

They are made as by `torch.library.custom_op`, without its check at every call that results share no
memory with arguments. The check takes up to half of the time of a call on the processor, and a
transformer makes 128 calls a step; `tests/kernels` checks it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operator", "operator"]

_library = torch.library.Library("lola_ds", "FRAGMENT")


class Operator:
    """An operator `lola_ds::name`, whose results are new tensors.

    Arguments:
        name: The name of the operator.
        function: Computes the operator on any device; its annotations give the schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.name = f"lola_ds::{name}"
        _library.define(name + torch.library.infer_schema(function, mutates_args=()))
        _library.impl(name, function, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.lola_ds, name).default

    def __call__(self, *args: Any) -> Any:
        """Calls the operator."""
        return self.overload(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates the function that computes the shapes of the results."""
        return torch.library.register_fake(self.name, function, lib=_library)

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None]
    ) -> None:
        """Registers gradients, as `torch.library.register_autograd` does."""
        torch.library.register_autograd(
            self.name, backward, setup_context=setup_context, lib=_library
        )


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates a function, which becomes an operator."""
    return lambda function: Operator(name, function)
