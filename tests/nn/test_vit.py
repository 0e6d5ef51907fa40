"""The vision transformer: blocks against their formula, invariances, precision, options."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomize
from torch import Tensor

from lola_ds.nn.activation_checkpointing import CheckpointingPolicy, block_policy
from lola_ds.nn.attention import grid_coordinates
from lola_ds.nn.vit import ViT, ViTBlock


def naive_block(block: ViTBlock, x: Tensor, mod: Tensor | None, p: Tensor, skip: Tensor) -> Tensor:
    """A block's formula, word by word, with the modulation of each sample apart."""
    outputs = []
    for i in range(len(x)):
        if mod is None:
            a, b, c, d = block.ada_zero
        else:
            h = F.silu(block.ada_zero[0].weight @ mod[i] + block.ada_zero[0].bias)
            a, b, c, d = (block.ada_zero[2].weight @ h + block.ada_zero[2].bias).view(4, -1)
        mean, var = x[i].mean(-1, keepdim=True), x[i].var(-1, keepdim=True, correction=0)
        y = (1 + a) * (x[i] - mean) / (var + 1e-5).sqrt() + b
        attended, _ = block.msa(y[None], p, block.theta)
        y = y + attended[0]
        y = F.silu(y @ block.ffn[0].weight.T + block.ffn[0].bias)
        y = y @ block.ffn[3].weight.T + block.ffn[3].bias
        z = (x[i] + c * y) / (1 + c**2).sqrt()
        outputs.append((z + d * skip[i]) / (1 + d**2).sqrt())
    return torch.stack(outputs)


@pytest.mark.parametrize("mod_features", [0, 6])
def test_block_follows_its_formula(mod_features: int) -> None:
    block = ViTBlock(8, mod_features, ffn_factor=2, axes=2, attention_heads=2)
    block = randomize(block).double()
    x, skip = torch.randn(2, 2, 6, 8, dtype=torch.float64).requires_grad_().unbind(0)
    mod = torch.randn(2, 6, dtype=torch.float64) if mod_features else None
    p = grid_coordinates((2, 3)).double()
    y, _ = block(x, mod, p, skip)
    assert_same(y, naive_block(block, x, mod, p, skip), (x, skip, *block.parameters()))


def test_blocks_see_relative_positions_only() -> None:
    block = randomize(ViTBlock(8, axes=2, attention_heads=2)).double()
    x, p = torch.randn(1, 6, 8, dtype=torch.float64), grid_coordinates((2, 3)).double()
    here, there = (block(x, None, q)[0] for q in (p, p + torch.tensor([3.0, -40.0])))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    elsewhere, _ = block(x, None, 2 * p)
    assert not torch.allclose(here, elsewhere, atol=1e-3)


def naive_vit(vit: ViT, x: Tensor, mod: Tensor, cond: Tensor) -> Tensor:
    """A transformer of patches (1, 2) to patches (2, 1) from its weights, token by token."""
    w = dict(vit.named_parameters())
    _, _, X, Y = x.shape
    tokens, places = [], []
    for i, j in itertools.product(range(X), range(Y // 2)):
        channels = [*x[0], *cond[0]]
        features = torch.stack([c[i, 2 * j + offset] for c in channels for offset in (0, 1)])
        tokens.append(w["in_proj.weight"] @ features + w["in_proj.bias"])
        encoding = []
        for place, half in itertools.product((i, j), (math.sin, math.cos)):
            encoding += [half(place * 1000 ** (-k / 3)) for k in range(4)]
        embedding = w["positional_embedding.2.weight"] @ torch.tensor(encoding).double()
        places.append(embedding + w["positional_embedding.2.bias"])
    skip, p = torch.stack(tokens)[None], grid_coordinates((X, Y // 2)).double()
    z = skip + torch.stack(places)
    for block in vit.blocks:
        z = naive_block(block, z, mod, p, skip)
    z = z[0] @ w["out_proj.weight"].T + w["out_proj.bias"]
    y = x.new_empty(1, 3, 2 * X, Y // 2)
    for (i, j), token in zip(itertools.product(range(X), range(Y // 2)), z):
        for k, c in itertools.product(range(2), range(3)):
            y[0, c, 2 * i + k, j] = token[2 * c + k]
    return y


def test_follows_its_description() -> None:
    vit = ViT(2, 3, 1, 4, 8, 2, 2, patch_size=(1, 2), unpatch_size=(2, 1))
    vit = randomize(vit).double()
    x, mod, cond = (torch.randn(1, *s).double() for s in ((2, 3, 4), (4,), (1, 3, 4)))
    torch.testing.assert_close(
        vit(x, mod, cond), naive_vit(vit, x, mod, cond), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "patch", "unpatch", "out"),
    [
        ((8,), 2, None, (8,)),
        ((4, 6), 1, None, (4, 6)),
        ((3, 4, 6), (1, 2, 2), None, (3, 4, 6)),
        ((2, 2, 2, 4), (1, 1, 1, 2), None, (2, 2, 2, 4)),
        ((8, 8), 4, 1, (2, 2)),
        ((2, 2), 1, 4, (8, 8)),
    ],
)
def test_shapes(shape: tuple, patch: int, unpatch: int | None, out: tuple) -> None:
    vit = ViT(3, 2, 1, 4, 16, 1, 2, spatial=len(shape), patch_size=patch, unpatch_size=unpatch)
    y = vit(torch.randn(2, 3, *shape), torch.randn(2, 4), torch.randn(2, 1, *shape))
    assert y.shape == (2, 2, *out)


def test_periodic_local_windows_commute_with_rolls() -> None:
    """With wrapped windows and no absolute or rotary position, rolling tokens rolls the output."""
    options = {"hid_channels": 8, "hid_blocks": 2, "attention_heads": 2, "rope": False}
    vit = randomize(ViT(2, 2, spatial=2, window_size=3, periodic=(False, True), **options))
    with torch.no_grad():
        vit.positional_embedding[2].weight.zero_()
    x = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(vit(x.roll(2, dims=3)), vit(x).roll(2, dims=3))
    assert not torch.allclose(vit(x.roll(2, dims=2)), vit(x).roll(2, dims=2), atol=1e-3)


def test_values_of_the_first_block_reach_the_others() -> None:
    """With a share of one, the deeper blocks' own values do not matter; with zero, the first's."""
    options = {"hid_channels": 8, "hid_blocks": 3, "attention_heads": 2}
    vit = randomize(ViT(2, 2, **options, value_residual=True))
    x = torch.randn(1, 2, 3, 4)
    names = {name for name, _ in vit.named_parameters() if name.endswith("value_share")}
    assert names == {"blocks.1.msa.value_share", "blocks.2.msa.value_share"}
    assert all(p.ndim for p in vit.parameters())  # checkpoints hold no tensors without axes

    outputs = {}
    for share in (0.0, 1.0):
        with torch.no_grad():
            for block in vit.blocks[1:]:
                block.msa.value_share.fill_(share)
            before = vit(x)
            values = vit.blocks[2].msa.qkv_proj.weight[16:]
            saved = values.clone()
            values.normal_()
            outputs[share] = (before, vit(x))
            values.copy_(saved)
    assert not torch.allclose(*outputs[0.0], atol=1e-3)
    assert torch.equal(*outputs[1.0])

    plain = ViT(2, 2, **options)
    with torch.no_grad():
        for block in vit.blocks[1:]:
            block.msa.value_share.zero_()
    plain.load_state_dict({k: v for k, v in vit.state_dict().items() if k not in names})
    assert torch.equal(plain(x), vit(x))


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize("policy", ["full", "selective", "offload", 2])
def test_checkpointing_changes_nothing(policy: CheckpointingPolicy, value_residual: bool) -> None:
    vit = randomize(ViT(2, 2, 0, 3, 8, 2, 2, dropout=0.1, value_residual=value_residual))
    x, mod = torch.randn(2, 2, 3, 4), torch.randn(2, 3)
    grads = []
    for vit.policies in (["none"] * 2, [block_policy(policy, i) for i in range(2)]):
        torch.manual_seed(0)
        vit.zero_grad()
        vit(x, mod).square().sum().backward()
        grads.append([p.grad.clone() for p in vit.parameters()])
    for a, b in zip(*grads):
        assert torch.equal(a, b)


def test_autocast_keeps_the_residual_stream_in_float32() -> None:
    vit = randomize(ViT(2, 2, 0, 3, 16, 3, 2), scale=0.2)
    streams = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: streams.append(output[0]))
    x, mod = torch.randn(2, 2, 3, 4), torch.randn(2, 3)
    expected = vit(x, mod)
    streams.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = vit(x, mod)
        assert vit.blocks[0].ffn[0](x.new_zeros(1, 16)).dtype == torch.bfloat16
    assert y.dtype == torch.float32
    assert all(stream.dtype == torch.float32 for stream in streams)
    assert (y - expected).norm() < 1e-2 * expected.norm()


def test_every_parameter_learns() -> None:
    vit = randomize(ViT(2, 2, 1, 3, 8, 2, 2, dropout=0.1))
    vit(torch.randn(2, 2, 3, 4), torch.randn(2, 3), torch.ones(2, 1, 3, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vit.parameters())
