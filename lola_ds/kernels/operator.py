"""Kernels as operators of torch: what compiled graphs, autograd and fake tensors know them by.

As `torch.library.custom_op`, without what it does at every call to see that a result shares no
memory with an argument. That takes a processor up to half of the time it needs for the call, and a
transformer makes 128 calls a step; `tests/kernels` checks it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operator", "operator"]

_library = torch.library.Library("lola_ds", "FRAGMENT")


class Operator:
    """An operator `lola_ds::name`; its results are new tensors.

    Arguments:
        name: Its name.
        function: What it does on any device; annotations give its schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.name = f"lola_ds::{name}"
        _library.define(name + torch.library.infer_schema(function, mutates_args=()))
        _library.impl(name, function, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.lola_ds, name).default

    def __call__(self, *args: Any) -> Any:
        """Calls it."""
        return self.overload(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: gives the shapes of its results."""
        return torch.library.register_fake(self.name, function, lib=_library)

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None]
    ) -> None:
        """Its gradients, as `torch.library.register_autograd` has them."""
        torch.library.register_autograd(
            self.name, backward, setup_context=setup_context, lib=_library
        )


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator: makes a function an operator."""
    return lambda function: Operator(name, function)
