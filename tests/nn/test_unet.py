"""The UNet: blocks and the whole against their formulas, invariances, shapes, precision."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomize, watch_blocks
from torch import Tensor

from lola_ds.nn.unet import ModulatedBlock, UNet, unit_coordinates

SMALL = {"hid_channels": (4, 6, 8), "hid_blocks": (1, 2, 1)}


def naive_block(w: dict[str, Tensor], x: Tensor, mod: Tensor | None, heads: int | None) -> Tensor:
    """A block's formula for (B, C, X, Y) from its weights, attention by loops over positions."""
    outputs = []
    for i in range(len(x)):
        scales = w.get("ada_zero")
        if scales is None:
            h = F.silu(w["ada_zero.0.weight"] @ mod[i] + w["ada_zero.0.bias"])
            scales = (w["ada_zero.2.weight"] @ h + w["ada_zero.2.bias"]).view(3, -1, 1, 1)
        a, b, c = scales
        y = (x[i] - x[i].mean(0)) / (x[i].var(0) + 1e-5).sqrt()
        y = (1 + a) * y + b
        if heads is not None:
            y = y + naive_attention(w, y.flatten(1).T, heads).T.view_as(y)
        half = w["ffn.0.weight"].shape[-1] // 2
        y = F.silu(F.conv2d(y[None], w["ffn.0.weight"], w["ffn.0.bias"], padding=half))
        y = F.conv2d(y, w["ffn.3.weight"], w["ffn.3.bias"], padding=half)[0]
        outputs.append((x[i] + c * y) / (1 + c**2).sqrt())
    return torch.stack(outputs)


def naive_attention(w: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    qkv = x @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
    y = torch.zeros_like(x)
    d = x.shape[1] // heads
    for head, i in itertools.product(range(heads), range(len(x))):
        q, k, v = qkv.view(len(x), 3, heads, d)[:, :, head].unbind(1)
        scores = torch.stack([q[i] @ k[j] / d**0.5 for j in range(len(x))]).softmax(0)
        y[i, head * d : (head + 1) * d] = sum(s * v[j] for j, s in enumerate(scores))
    return y @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]


@pytest.mark.parametrize(("mod_features", "heads"), [(0, None), (3, None), (3, 2)])
def test_block_follows_its_formula(mod_features: int, heads: int | None) -> None:
    block = ModulatedBlock(4, mod_features, ffn_factor=2, attention_heads=heads)
    block = randomize(block).double()
    assert block.ffn[0].weight.shape[2:] == ((3, 3) if heads is None else (1, 1))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    mod = torch.randn(2, 3, dtype=torch.float64) if mod_features else None
    expected = naive_block(dict(block.named_parameters()), x, mod, heads)
    assert_same(block(x, mod), expected, (x, *block.parameters()))


def test_levels_follow_their_description() -> None:
    """The whole network from its weights alone: what each name holds and where it acts."""
    unet = UNet(2, 3, 1, 4, hid_channels=(4, 5), hid_blocks=(1, 2), attention_heads={1: 5})
    unet = randomize(unet).double()
    w = dict(unet.named_parameters())

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding=1)

    def block(name: str, x: Tensor, heads: int | None = None) -> Tensor:
        weights = {k.removeprefix(f"{name}."): v for k, v in w.items() if k.startswith(name)}
        return naive_block(weights, x, mod, heads)

    x, cond = torch.randn(1, 2, 3, 5), torch.randn(1, 1, 3, 5)
    mod = torch.randn(1, 4, dtype=torch.float64)
    rows, columns = torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5)
    coordinates = torch.stack((rows[:, None].expand(3, 5), columns.expand(3, 5)))[None]
    fine = conv("descent.0.0", torch.cat((x, coordinates, cond), 1).double())
    fine = block("descent.0.1", fine)
    coarse = conv("descent.1.0", fine, stride=2)
    assert coarse.shape == (1, 5, 2, 3)
    for name in ("descent.1.1", "descent.1.2", "ascent.0.0", "ascent.0.1"):
        coarse = block(name, coarse, heads=5)
    up = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :3, :5]
    y = conv("ascent.1.0", torch.cat((up, fine), 1))
    y = conv("ascent.1.2", block("ascent.1.1", y))

    actual = unet(x.double(), mod, cond)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, y.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"norm": "group", "attention_heads": {2: 2}}])
def test_axes_of_any_size(spatial: int, options: dict) -> None:
    """Sizes that no stride divides come back cropped; every parameter learns."""
    unet = randomize(UNet(2, 3, 1, 5, spatial=spatial, periodic=True, **SMALL, **options), 0.2)
    shape = (5, 6, 4, 4)[:spatial]
    y = unet(torch.randn(2, 2, *shape), torch.randn(2, 5), torch.ones(2, 1, *shape))
    assert y.shape == (2, 3, *shape)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


@pytest.mark.parametrize("spatial", [2, 3, 4])
def test_periodic_axes_commute_with_rolls(spatial: int) -> None:
    """Blind to coordinates, a network that is periodic in its last axis commutes with its rolls."""
    options = {"stride": [1, 2, 2, 2][-spatial:], "identity_init": False}
    periodic = [False] * (spatial - 1) + [True]
    unet = UNet(1, 1, spatial=spatial, periodic=periodic, **SMALL, **options)
    unet = randomize(unet, 0.2)
    first = unet.descent[0][0]
    with torch.no_grad():
        (first.space if spatial == 4 else first).weight[:, 1:] = 0
    x = torch.randn(1, 1, *(2, 4, 4)[4 - spatial :], 8)
    y = unet(x)
    torch.testing.assert_close(unet(x.roll(4, -1)), y.roll(4, -1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(unet(x.roll(2, -2)), y.roll(2, -2), rtol=1e-3, atol=1e-3)


def test_unit_coordinates_span_the_grid() -> None:
    p = unit_coordinates(torch.zeros(2, 5, 3, 1))
    assert p.shape == (2, 2, 3, 1)
    assert p[0, 0, :, 0].tolist() == [-1, 0, 1]
    assert p[1, 1, :, 0].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("policy", ["selective", "full", 2])
def test_checkpointing_changes_nothing(policy: str | int) -> None:
    x, mod = torch.randn(1, 1, 8, 8), torch.randn(1, 3)
    grads = []
    for checkpointing in ("none", policy):
        torch.manual_seed(0)
        unet = UNet(1, 1, 0, 3, **SMALL, checkpointing=checkpointing)
        unet(x, mod).square().sum().backward()
        grads.append([p.grad for p in unet.parameters()])
    torch.testing.assert_close(*grads)


def test_blocks_are_given_their_channels_last() -> None:
    unet = UNet(2, 3, **SMALL)
    stored = watch_blocks(ModulatedBlock, unet)
    unet(torch.randn(2, 2, 10, 12))
    assert stored == [True] * 8


def test_autocast_returns_float32_close_by() -> None:
    unet = randomize(UNet(2, 2, 0, 3, **SMALL, attention_heads={2: 2}), 0.2)
    x, mod = torch.randn(2, 2, 8, 8), torch.randn(2, 3)
    expected = unet(x, mod)
    with torch.autocast("cpu", torch.bfloat16):
        y = unet(x, mod)
    assert y.dtype == torch.float32
    assert 0 < (y - expected).norm() < 3e-2 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hid_blocks": (1,)}, "same number of levels"),
        ({"attention_heads": {3: 1}}, "level"),
        ({"attention_heads": {2: 3}}, "3 heads"),
        ({"stride": (2,)}, "stride"),
        ({"spatial": 5}, "spatial=5"),
    ],
)
def test_unet_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(1, 1, **{**SMALL, **options})
