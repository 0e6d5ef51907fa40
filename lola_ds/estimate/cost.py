"""What a forward and backward pass costs, found by running it on tensors without storage.

A network built by `build_fake` has shapes but no values, so any size can be traced on a laptop in
seconds. The trace sees every operation that autograd dispatches: floating-point operations, bytes
read and written, and the bytes alive at every moment, bfloat16 copies of weights, recomputed
activations and temporary buffers included. Of what kernels allocate while they run, convolutions'
copies in other layouts are added.
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

T = TypeVar("T")
aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """One operation.

    Attributes:
        flops: its floating-point operations.
        bytes: what it reads and writes.
        half: whether it runs in 16 bits.
        sent: bytes to the ranks that share the tokens of a sample.
    """

    flops: int
    bytes: int
    half: bool
    sent: int = 0


@dataclass(frozen=True)
class PassCost:
    """The cost of one forward and backward pass, for a number of samples.

    Attributes:
        samples: the micro-batch.
        parameters: trainable elements.
        kernels: the operations in order, views left out.
        activations: peak bytes when each gradient is taken away as soon as it is complete.
        with_gradients: peak bytes when gradients stay, those included.
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
    def sent(self) -> int:
        """Bytes to the ranks that share the tokens of a sample."""
        return sum(kernel.sent for kernel in self.kernels)


def build_fake(build: Callable[[], T]) -> T:
    """Runs `build` so that every tensor it makes has a shape and no storage.

    Tensors that meet later must come from the same call.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        return build()


def trace_pass(objective: nn.Module, batch: Any) -> PassCost:
    """Traces one forward and backward pass of a fake objective.

    Arguments:
        objective: made by `build_fake`; `objective(batch)` returns (loss, scalars).
        batch: a batch of which at least `x` is fake; what the objective reads as numbers, such as
            seeds, is real.
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
    """Counts what every operation does and what is alive after it, on fake tensors or real ones.

    Arguments:
        resident: tensors that were there before and are nobody's activations.

    Attributes:
        kernels: the operations so far, views left out.
        live: bytes of tensors made since and not freed.
        peak: the most there were.
        gradients: bytes taken away by `take_gradient`.
        peak_with_gradients: the most there were with these.
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
            send = _SENDING.get(func._overloadpacket)
            self.kernels.append(
                Kernel(
                    flops=int(count(*args, **kwargs, out_val=out)) if count else 0,
                    bytes=sum(_bytes(tensor) for tensor in (*inputs, *outputs)),
                    half=any(tensor.dtype.itemsize == 2 for tensor in inputs),
                    sent=int(send(*args)) if send else 0,
                )
            )
        return out

    def hold(self, leaves: Iterable[Any], workspace: int = 0) -> bool:
        """Counts new tensors among `leaves` until they are freed; whether there were any.

        Arguments:
            leaves: what an operation gave.
            workspace: bytes that it held beside while it ran.
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
        """Books a finished gradient apart from the activations."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None

    def _free(self, size: int) -> None:
        self.live -= size


def _bytes(tensor: Tensor) -> int:
    """Bytes that a kernel touches: those of an expanded tensor once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Twice the forward pass; the scores that the kernel recomputes are not the model's work."""
    return 2 * _attention(query, key, value)


def _convolution_workspace(x: Tensor, weight: Tensor, *_: Any) -> int:
    """Bytes that a convolution of oneDNN holds: copies of the weights, or of all it reads.

    Measured. Fields whose channels are last need none, the weights one copy in their layout and
    one in the kernel's. cuDNN likewise copies the weights of such fields; what else it takes
    depends on the algorithm that it picks.
    """
    if not is_channels_last(x):
        return x.nbytes + weight.nbytes
    return 2 * weight.nbytes if math.prod(weight.shape[2:]) > 1 else 0


def _convolution_backward_workspace(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """As `_convolution_workspace`, beside both gradients."""
    if not is_channels_last(x):
        return max(x.nbytes + grad.nbytes, weight.nbytes)
    return 3 * weight.nbytes if math.prod(weight.shape[2:]) > 1 else 0


_WORKSPACES = {
    aten.convolution: _convolution_workspace,
    aten.convolution_backward: _convolution_backward_workspace,
}

_SENDING = {
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
