"""Activation checkpointing: which blocks are recomputed in the backward pass, and what they keep.

| policy | memory | extra work |
|---|---|---|
| `none` (or false) | every activation of every block | none |
| `selective` | outputs of matrix products, convolutions and attention | normalisations, gates, … |
| n (an integer ≥ 2) | every n-th block keeps its input only | 1/n of a forward pass |
| `full` (or true) | every block keeps its input only | a forward pass |
| `offload` | every block keeps its input only, in memory of the host | the same, and copies |

torch's non-reentrant checkpointing is used, which is right under every ZeRO stage and compiles.

References:
    | Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016)
    | https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

__all__ = ["CheckpointingPolicy", "block_policy", "checkpoint_block"]

T = TypeVar("T")
CheckpointingPolicy = bool | int | str
"""`none`, `selective`, `full`, `offload`, every n-th block; false and true mean none and full."""

_aten = torch.ops.aten
_SAVED_OPERATORS = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""What `selective` does not compute twice."""


def block_policy(policy: CheckpointingPolicy, index: int) -> str:
    """Returns the policy of block `index`: `none`, `selective`, `full` or `offload`.

    Raises:
        ValueError: There is no such policy.
    """
    if isinstance(policy, bool):
        return "full" if policy else "none"
    if isinstance(policy, int) and policy >= 2:
        return "none" if index % policy else "full"
    if policy in ("none", "selective", "full", "offload"):
        return str(policy)
    raise ValueError(
        f"checkpointing={policy} is unknown; choose none, selective, full, offload, or an integer "
        "n of at least 2 for every n-th block"
    )


def checkpoint_block(policy: str, function: Callable[..., T], *args: Any) -> T:
    """Computes `function(*args)`, whose activations are kept or recomputed as `policy` says."""
    if policy == "none" or not torch.is_grad_enabled():
        return function(*args)
    if policy == "full":
        return checkpoint(function, *args, use_reentrant=False)
    if policy == "offload":  # reaches what the checkpoint keeps, not what is within
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(function, *args, use_reentrant=False)
    context = functools.partial(create_selective_checkpoint_contexts, _SAVED_OPERATORS)
    return checkpoint(function, *args, use_reentrant=False, context_fn=context)
