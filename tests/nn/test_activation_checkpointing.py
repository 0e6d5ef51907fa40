"""Activation checkpointing: what each policy keeps and computes twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lola_ds.nn.activation_checkpointing import CheckpointingPolicy, block_policy, checkpoint_block


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (False, "none none none none"),
        ("none", "none none none none"),
        (True, "full full full full"),
        ("full", "full full full full"),
        ("selective", "selective selective selective selective"),
        (2, "full none full none"),
        (3, "full none none full"),
        ("offload", "offload offload offload offload"),
    ],
)
def test_policy_of_each_block(policy: CheckpointingPolicy, expected: str) -> None:
    assert [block_policy(policy, index) for index in range(4)] == expected.split()


@pytest.mark.parametrize("policy", [0, 1, -2, "some", "Full"])
def test_unknown_policy_is_refused(policy: CheckpointingPolicy) -> None:
    with pytest.raises(ValueError, match=f"checkpointing={policy} is unknown; choose none, sel"):
        block_policy(policy, 0)


def work(policy: str) -> int:
    """Floating-point operations of a forward and backward pass."""
    block = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.LayerNorm(32), nn.Linear(32, 8))
    x = torch.randn(64, 8, requires_grad=True)
    with FlopCounterMode(display=False) as flops:
        checkpoint_block(policy, block, x).square().sum().backward()
    return flops.get_total_flops()


def test_what_is_computed_twice() -> None:
    none = work("none")
    forward = 2 * 2 * 64 * 8 * 32
    assert none == 3 * forward
    assert none < work("full") <= none + forward
    assert work("selective") == none


@pytest.mark.parametrize("policy", ["full", "offload"])
def test_what_is_kept_of_a_block(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its input: where it is, which is then overwritten, or a copy of it."""
    if not torch.cuda.is_available():  # where `save_on_cpu` has nothing to copy
        copying = saved_tensors_hooks(Tensor.clone, lambda tensor: tensor)
        monkeypatch.setattr(
            "lola_ds.nn.activation_checkpointing.save_on_cpu", lambda pin_memory: copying
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).to(device)
    x = torch.randn(4, 8, requires_grad=True, device=device)
    block(x).sum().backward()
    assert x.grad is not None
    expected, x.grad = x.grad, None
    y = checkpoint_block(policy, block, x)
    x.data.zero_()
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, expected) == (policy == "offload")


def test_nothing_is_recomputed_without_gradients() -> None:
    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(1)
        return x

    with torch.no_grad():
        checkpoint_block("full", count, torch.ones(1))
    assert calls == [1]
