"""Networks made ready for inference: rounded weights, joined modulations, compiled."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from helpers import randomize

from lola_ds.nn.dcae import DCEncoder
from lola_ds.nn.inference import cast_weights, fuse_modulations, prepare_for_inference
from lola_ds.nn.unet import UNet
from lola_ds.nn.vit import ViT

KINDS = {
    "vit": lambda: ViT(2, 2, 0, 4, 16, 2, 1, spatial=2),
    "unet": lambda: UNet(2, 2, 0, 4, (8, 8), (1, 1), spatial=2),
    "dcae": lambda: DCEncoder(2, 3, (8, 12), (1, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_weights_are_those_of_autocast(kind: str) -> None:
    torch.manual_seed(0)
    network = KINDS[kind]()
    x = torch.randn(2, 2, 4, 6)
    inputs = (x,) if kind == "dcae" else (x, torch.randn(2, 4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(*inputs)
        cast_weights(network, torch.bfloat16)
        assert torch.equal(network(*inputs), expected)
    rounded = [name for name, p in network.named_parameters() if p.dtype == torch.bfloat16]
    assert any("ffn.0" in name for name in rounded)
    assert not any("ada_zero" in name or "in_proj" in name for name in rounded)


def test_joined_modulations_are_those_of_the_blocks() -> None:
    """With gradients with respect to the modulation vector, which guidance may ask for."""
    torch.manual_seed(0)
    network = randomize(ViT(2, 2, 0, 4, 16, 3, 1, spatial=2)).double()
    x, mod = torch.randn(2, 2, 4, 6).double(), torch.randn(2, 4).double().requires_grad_()
    count = sum(p.numel() for p in network.parameters())
    results = []
    for _ in range(2):
        y = network(x, mod)
        results.append([y, *torch.autograd.grad(y.square().sum(), mod)])
        fuse_modulations(network)
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not any("ada_zero" in name for name, _ in network.named_parameters())
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("kind", ["dcae", "unet", "unmodulated"])
def test_other_networks_keep_their_modulation(kind: str) -> None:
    network = ViT(2, 2, 0, 0, 16, 2, 1, spatial=2) if kind == "unmodulated" else KINDS[kind]()
    names = [name for name, _ in network.named_parameters()]
    fuse_modulations(network)
    assert [name for name, _ in network.named_parameters()] == names


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_ready_networks_give_the_same_values(
    precision: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    plain = randomize(KINDS["vit"]())
    network = copy.deepcopy(plain)
    prepare_for_inference(network, precision, compiled=True)
    x, mod = torch.randn(2, 2, 4, 6), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected, found = plain(x, mod), network(x, mod)
    assert (found - expected).norm() <= error * expected.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not any(p.requires_grad for p in network.parameters())
