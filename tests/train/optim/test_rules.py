"""Each optimizer sees whole matrices, and its randomness is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lola_ds.config import OPTIMIZERS, compose_group
from lola_ds.train.optim import OwnerShardedOptimizer, make_optimizer

WHOLE = [name for name in OPTIMIZERS if name != "adamw"]
SIDE = 12


def make(name: str, parameters: list[nn.Parameter], **changes: Any) -> torch.optim.Optimizer:
    seed = changes.pop("seed", 0)
    return make_optimizer(parameters, {**compose_group("optim", name), **changes}, seed=seed)


def descend(
    name: str, steps: int, lr: float, seed: int = 0, **changes: Any
) -> tuple[list[float], Tensor]:
    """Minimises |A (W - 1) B|² with A, B full and ill-conditioned (1e2 each) from W = 0."""
    generator = torch.Generator().manual_seed(1)

    def factor() -> Tensor:
        u, _ = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))
        return u @ torch.diag(torch.logspace(-2, 0, SIDE)) @ v

    a, b = factor(), factor()
    target = torch.randn(SIDE, SIDE, generator=generator)
    w = nn.Parameter(torch.zeros(SIDE, SIDE))
    optimizer = make(name, [w], seed=seed, **changes)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = (a @ (w - target) @ b).square().sum()
        w.grad = torch.autograd.grad(loss, w)[0]
        optimizer.step()
        losses.append(loss.item())
    return losses, w.detach()


@pytest.mark.parametrize(
    ("name", "changes"),
    [("soap", {"precondition_frequency": 2, "precondition_beta": 0.9}), ("psgd", {})],
)
def test_preconditions_whole_matrices(name: str, changes: dict[str, Any]) -> None:
    """Kronecker-factored curvature is what these methods see, and AdamW does not."""
    losses, _ = descend(name, 100, 0.2, **changes)
    adamw, _ = descend("adamw", 100, 0.2)
    assert losses[-1] < 0.7 * adamw[-1]


def test_a_flat_parameter_is_not_preconditioned() -> None:
    """What ZeRO's flat partitions would do: no Gram matrices at all."""
    flat, whole = nn.Parameter(torch.ones(24)), nn.Parameter(torch.ones(4, 6))
    for p, sides in ((flat, []), (whole, [4, 6])):
        optimizer = make("soap", [p])
        assert isinstance(optimizer, OwnerShardedOptimizer)
        p.grad = torch.randn_like(p)
        optimizer.step()
        tree = optimizer.state_tree(optimizer.owned[0].leaf)["tensor"][0]
        (grams,) = [value for key, value in tree.items() if "_GG_" in key]
        assert [g.shape[-1] for g in grams or [] if g is not None] == sides


@pytest.mark.parametrize("name", WHOLE)
def test_global_generator_is_neither_read_nor_moved(name: str) -> None:
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        expected = torch.random.get_rng_state()
        results.append(descend(name, 5, 0.01)[1])
        assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.equal(*results)


def test_psgd_draws_from_the_seed() -> None:
    assert not torch.equal(descend("psgd", 8, 0.01, seed=0)[1], descend("psgd", 8, 0.01, seed=1)[1])


@pytest.mark.parametrize("name", WHOLE)
def test_result_does_not_depend_on_the_other_tensors(name: str) -> None:
    """A tensor steps alone or among others of its shape, in any rank's hands, to the same bits."""

    def train(count: int) -> Tensor:
        parameters = [nn.Parameter(torch.full((4, 6), 1.0 + i)) for i in range(count)]
        optimizer = make(name, parameters)
        optimizer.param_groups[0]["lr"] = 0.01
        for step in range(6):
            for i, p in enumerate(parameters):
                generator = torch.Generator().manual_seed(100 * step + i)
                p.grad = torch.randn(4, 6, generator=generator)
            optimizer.step()
        return parameters[0].detach()

    assert torch.equal(train(1), train(3))


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 4, 3, 3), (3, 7, 2)])
def test_muon_orthogonalises_matrices_and_kernels(shape: tuple[int, ...]) -> None:
    """Singular values near 1, times 0.2 sqrt(longer side); so clipping the gradient is harmless."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=generator)
    updates = []
    for scale in (1.0, 1e-3):
        p = nn.Parameter(torch.zeros(shape))
        optimizer = make("muon", [p])
        optimizer.param_groups[0]["lr"] = 1.0
        p.grad = scale * gradient
        optimizer.step()
        updates.append(p.detach().flatten(1))
    values = torch.linalg.svdvals(updates[0]) / (0.2 * max(updates[0].shape) ** 0.5)
    assert values.min() > 0.4
    assert values.max() < 1.4
    torch.testing.assert_close(updates[0], updates[1], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (1, 7, 1, 1)])
def test_muon_leaves_vectors_to_adamw(shape: tuple[int, ...]) -> None:
    gradient = torch.linspace(-1, 1, 7).view(shape) + 0.1
    results = []
    for name in ("muon", "adamw"):
        p = nn.Parameter(torch.ones(shape))
        optimizer = make(name, [p])
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        p.grad = gradient.clone()
        optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = make("soap", [used, unused])
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(3):
        used.grad = torch.randn(3, 4)
        optimizer.step()
    assert torch.equal(unused, torch.ones(3, 4))
    assert not torch.equal(used, torch.ones(3, 4))
