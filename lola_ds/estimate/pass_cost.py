"""The cost of a forward and backward pass, traced on tensors without storage.

A network built by `build_fake` has shapes but no values, so any size can be traced on a laptop in
seconds. The trace sees every operation that autograd dispatches. It counts floating-point
operations, bytes read and written, and the bytes that are live at every moment, including bfloat16
copies of weights, recomputed activations and temporary buffers. Of the workspaces that kernels
allocate while they run, it adds the copies that convolutions make in other memory formats.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from lola_ds.nn.layers import is_channels_last

__all__ = ["Kernel", "PassCost", "Trace", "build_fake", "trace_pass"]

T = TypeVar("T")
aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """One operation.

    Attributes:
        flops: The floating-point operations.
        bytes: The bytes that it reads and writes.
        half: Whether it runs in 16 bits.
        comm_bytes: The bytes that it sends to the ranks that share the tokens of a sample.
    """

    flops: int
    bytes: int
    half: bool
    comm_bytes: int = 0


@dataclass(frozen=True)
class PassCost:
    """The cost of one forward and backward pass, for a number of samples.

    Attributes:
        samples: The micro-batch.
        parameters: The number of trainable parameters.
        kernels: The operations in order, without views.
        activations: The peak in bytes if each gradient is freed as soon as it is complete.
        with_gradients: The peak in bytes if gradients are kept.
    """

    samples: int
    parameters: int
    kernels: tuple[Kernel, ...]
    activations: int
    with_gradients: int

    @property
    def flops(self) -> int:
        """Floating-point operations of matrix products, convolutions and attention."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def comm_bytes(self) -> int:
        """The bytes that are sent to the ranks that share the tokens of a sample."""
        return sum(kernel.comm_bytes for kernel in self.kernels)


def build_fake(build: Callable[[], T]) -> T:
    """Runs `build` such that every tensor it makes has a shape and no storage.

    Tensors that are used together must come from the same call.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        return build()


def trace_pass(objective: nn.Module, batch: Any) -> PassCost:
    """Traces one forward and backward pass of a fake objective.

    Arguments:
        objective: The objective, made by `build_fake`; `objective(batch)` returns (loss, scalars).
        batch: The batch, whose `x` is fake. What the objective reads as numbers, such as seeds,
            is real.
    """
    objective.train()
    trace = Trace([*objective.parameters(), *objective.buffers()])
    weights = [p for p in objective.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(trace.take_gradient) for p in weights]
    with trace:
        trace.hold(tree_leaves(vars(batch)))
        objective(batch)[0].backward()
    for hook in hooks:
        hook.remove()
    return PassCost(
        samples=len(batch.x),
        parameters=sum(p.numel() for p in weights),
        kernels=tuple(trace.kernels),
        activations=trace.peak,
        with_gradients=trace.peak_with_gradients,
    )


class Trace(TorchDispatchMode):
    """Counts operations and live bytes, on fake tensors or real ones.

    Arguments:
        resident: The tensors that exist before the trace and are not counted.

    Attributes:
        kernels: The operations so far, without views.
        live: The bytes of tensors that were made during the trace and are not freed.
        peak: The maximum of `live`.
        gradients: The bytes of finished gradients.
        peak_with_gradients: The maximum of `live` and `gradients` together.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.live = self.peak = 0
        self.gradients = self.peak_with_gradients = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in resident:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        within = _WORKSPACES.get(func._overloadpacket)
        if self.hold(outputs, int(within(*args)) if within else 0) or func._schema.is_mutable:
            count = _FORMULAS.get(func._overloadpacket)
            comm_bytes = _COMM_BYTES.get(func._overloadpacket)
            self.kernels.append(
                Kernel(
                    flops=int(count(*args, **kwargs, out_val=out)) if count else 0,
                    bytes=sum(_bytes(tensor) for tensor in (*inputs, *outputs)),
                    half=any(tensor.dtype.itemsize == 2 for tensor in inputs),
                    comm_bytes=int(comm_bytes(*args)) if comm_bytes else 0,
                )
            )
        return out

    def hold(self, leaves: Iterable[Any], workspace: int = 0) -> bool:
        """Counts the new tensors among `leaves` as live until they are freed.

        Arguments:
            leaves: The results of an operation.
            workspace: The bytes that the operation allocated while it ran.

        Returns:
            Whether there were new tensors.
        """
        before = self.live
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._seen:
                storage = leaf.untyped_storage()
                self._seen[storage] = True
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        most = self.live + workspace
        self.peak = max(self.peak, most)
        self.peak_with_gradients = max(self.peak_with_gradients, most + self.gradients)
        return self.live > before

    def take_gradient(self, parameter: Tensor) -> None:
        """Counts a finished gradient apart from the activations."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None

    def _free(self, size: int) -> None:
        self.live -= size


def _bytes(tensor: Tensor) -> int:
    """The bytes that a kernel touches; an expanded tensor counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Twice the forward pass; scores that the kernel recomputes are not counted."""
    return 2 * _attention(query, key, value)


def _convolution_workspace(x: Tensor, weight: Tensor, *_: Any) -> int:
    """The workspace of a oneDNN convolution in bytes, as measured.

    Channels-first inputs and weights are copied. With channels-last inputs, only the weights are
    copied, once in their own memory format and once in the kernel's. cuDNN copies the weights,
    too; the rest of its workspace depends on the algorithm that it selects.
    """
    if not is_channels_last(x):
        return x.nbytes + weight.nbytes
    return 2 * weight.nbytes if math.prod(weight.shape[2:]) > 1 else 0


def _convolution_backward_workspace(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """The workspace of the backward pass, likewise."""
    if not is_channels_last(x):
        return max(x.nbytes + grad.nbytes, weight.nbytes)
    return 3 * weight.nbytes if math.prod(weight.shape[2:]) > 1 else 0


_WORKSPACES = {
    aten.convolution: _convolution_workspace,
    aten.convolution_backward: _convolution_backward_workspace,
}

_COMM_BYTES = {
    torch.ops._c10d_functional.all_to_all_single: lambda x, parts, *_: (
        x.nbytes * (len(parts) - 1) / len(parts)
    ),
    torch.ops._c10d_functional.all_gather_into_tensor: lambda x, ranks, *_: x.nbytes * (ranks - 1),
}

# torch counts attention on GPUs only.
_FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
