"""Compiled blocks: one graph each, the values of uncompiled ones, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lola_ds.config import compose
from lola_ds.nn.compilation import compile_blocks, compile_network
from lola_ds.nn.dcae import DCEncoder, ResidualBlock
from lola_ds.nn.modulation import AdaZero
from lola_ds.nn.unet import ModulatedBlock, UNet
from lola_ds.nn.vit import ViT, ViTBlock

pytestmark = pytest.mark.filterwarnings(  # dynamo's
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)
KINDS = {
    "vit": (lambda: ViT(2, 2, 0, 4, 16, 2, 1, spatial=2, checkpointing=2), ViTBlock, 1),
    "unet": (lambda: UNet(2, 2, 0, 4, (8, 8), (1, 1), spatial=2), ModulatedBlock, 2),
    "dcae": (lambda: DCEncoder(2, 3, (8, 12), (1, 1), checkpointing="full"), ResidualBlock, 2),
}


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_one_graph_of_the_same_values(kind: str) -> None:
    """Recomputed blocks too; those of equal shapes and strides share the graph."""
    make, block, graphs = KINDS[kind]
    torch.manual_seed(0)
    plain = make()
    network = copy.deepcopy(plain)
    assert compile_blocks(network) == [block]
    x = torch.randn(2, 2, 4, 6)
    inputs = (x,) if kind == "dcae" else (x, torch.randn(2, 4))
    results = []
    for module in (plain, network):
        y = module(*inputs)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced_only")
def test_copies_run_their_own_parameters() -> None:
    network = ViT(2, 2, 0, 4, 16, 1, 1, spatial=2)
    compile_blocks(network)
    x, mod = torch.randn(1, 2, 2, 3), torch.randn(1, 4)
    with torch.no_grad():
        expected = network(x, mod)
        other = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(other(x, mod), expected)


@pytest.mark.usefixtures("traced_only")
def test_what_cannot_be_one_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph breaks, and blocks that the compiler skips, raise errors."""
    network = ViT(2, 2, 0, 4, 16, 1, 1, spatial=2, checkpointing="selective")
    compile_blocks(network)
    monkeypatch.setattr("lola_ds.nn.vit.modulate_branches", torch._dynamo.disable(lambda x, *_: x))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        network(torch.randn(1, 2, 2, 3), torch.randn(1, 4))


def test_gradients_of_float32_layers_are_not_rounded_under_autocast() -> None:
    compile_blocks(ViT(2, 2, hid_channels=16, hid_blocks=1, attention_heads=1))
    torch.manual_seed(0)
    layer = AdaZero(32, 8)
    compiled = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
    mod, grad = torch.randn(4, 32), torch.randn(4, 8)
    results = []
    for function in (layer.forward, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(mod)
        results.append(torch.autograd.grad(y, list(layer.parameters()), grad))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


def test_refusals_name_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"Linear has no block to compile; choose compile=false"):
        compile_blocks(nn.Linear(2, 2))
    network = ViT(2, 2, hid_channels=16, hid_blocks=1, attention_heads=1)
    for function in (compile_blocks, compile_network):
        off = torch._dynamo.config.patch(disable=True)
        with off, pytest.raises(ValueError, match="TORCH_COMPILE_DISABLE=1 switches"):
            function(network)
    words = ["task=surrogate", "run=r", "data=d", "compile=true"]
    for word, message in {
        "surrogate.checkpointing=selective": r"surrogate\.checkpointing=selective .*choose none",
        "sequence_parallel=2": "sequence_parallel=2 .*choose compile=false",
    }.items():
        with pytest.raises(ValueError, match=message):
            compose([*words, word])
