"""Convolutional encoder and decoder: blocks against their formula, shapes, invariances."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomize, watch_blocks
from torch import Tensor

from lola_ds.nn.attention import GridAttention
from lola_ds.nn.dcae import DCDecoder, DCEncoder, ResidualBlock

SMALL = {"hid_channels": (4, 6, 8), "hid_blocks": (1, 2, 1)}


def test_block_follows_its_formula() -> None:
    block = randomize(ResidualBlock(6, spatial=2, ffn_factor=2)).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
    y = F.silu(F.conv2d(y, block.ffn[0].weight, block.ffn[0].bias, padding=1))
    y = F.conv2d(y, block.ffn[3].weight, block.ffn[3].bias, padding=1)
    assert_same(block(x), x + y, (x, *block.parameters()))


def test_attention_block_follows_its_formula() -> None:
    block = randomize(ResidualBlock(8, spatial=2, attention_heads=2)).double()
    names = {name for name, _ in block.attn.named_parameters()}
    assert names == {
        "0.in_proj_weight",
        "0.in_proj_bias",
        "0.out_proj.weight",
        "0.out_proj.bias",
    }
    assert block.ffn[0].weight.shape == (8, 8, 1, 1)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
    tokens = y.flatten(2).mT
    mha = block.attn[0]
    q, k, v = (tokens @ mha.in_proj_weight.T + mha.in_proj_bias).view(1, 6, 3, 2, 4).unbind(2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    attended = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
    tokens = tokens + attended @ mha.out_proj.weight.T + mha.out_proj.bias
    hidden = F.silu(tokens @ block.ffn[0].weight.flatten(1).T + block.ffn[0].bias)
    tokens = hidden @ block.ffn[3].weight.flatten(1).T + block.ffn[3].bias
    assert_same(block(x), x + tokens.mT.unflatten(2, (2, 3)), (x, *block.parameters()))


def to_depth(x: Tensor) -> Tensor:
    """Space to depth by 2×2, channel outermost, offset by offset."""
    parts = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.stack(parts, dim=2).flatten(1, 2)


def to_space(x: Tensor) -> Tensor:
    """Undoes `to_depth`."""
    B, C, X, Y = x.shape
    y = x.new_empty(B, C // 4, 2 * X, 2 * Y)
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        y[:, :, i::2, j::2] = x[:, k::4]
    return y


@pytest.mark.parametrize("pixel_shuffle", [True, False])
def test_levels_follow_their_description(pixel_shuffle: bool) -> None:
    """Encoder and decoder from their weights alone: what each name holds and where it acts."""
    options = {"hid_channels": (3, 4), "hid_blocks": (1, 1), "pixel_shuffle": pixel_shuffle}
    encoder = randomize(DCEncoder(2, 5, **options)).double()
    decoder = randomize(DCDecoder(5, 2, **options)).double()
    w = {**dict(encoder.named_parameters()), **dict(decoder.named_parameters())}

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding=1)

    def block(name: str, x: Tensor) -> Tensor:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        return x + conv(f"{name}.ffn.3", F.silu(conv(f"{name}.ffn.0", y)))

    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    y = block("descent.0.1", conv("descent.0.0", x))
    y = conv("descent.1.0.1", to_depth(y)) if pixel_shuffle else conv("descent.1.0", y, stride=2)
    z = conv("descent.1.2", block("descent.1.1", y))
    y = block("ascent.0.1", conv("ascent.0.0", z))
    if pixel_shuffle:
        y = to_space(conv("ascent.0.2.0", y))
    else:
        y = conv("ascent.0.2.1", y.repeat_interleave(2, 2).repeat_interleave(2, 3))
    y = conv("ascent.1.1", block("ascent.1.0", y))

    torch.testing.assert_close(encoder(x), z.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder(z), y.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "latent"),
    [
        ((16,), {"spatial": 1}, (4,)),
        ((16, 8), {}, (4, 2)),
        ((16, 8), {"pixel_shuffle": False}, (4, 2)),
        ((16, 8), {"stride": [2, 1]}, (4, 8)),
        ((16, 8), {"patch_size": 2}, (2, 1)),
        ((16, 8), {"attention_heads": {2: 2}, "norm": "group"}, (4, 2)),
        ((8, 8, 4), {"spatial": 3, "periodic": True}, (2, 2, 1)),
        ((8, 8, 4), {"spatial": 3, "pixel_shuffle": False}, (2, 2, 1)),
        ((4, 4, 4, 4), {"spatial": 4, "stride": [1, 2, 2, 2]}, (4, 1, 1, 1)),
    ],
)
def test_decoder_mirrors_encoder(shape: tuple, options: dict, latent: tuple) -> None:
    encoder, decoder = DCEncoder(3, 5, **SMALL, **options), DCDecoder(5, 3, **SMALL, **options)
    x = torch.randn(2, 3, *shape)
    z = encoder(x)
    assert z.shape == (2, 5, *latent)
    y = decoder(z)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None for p in (*encoder.parameters(), *decoder.parameters()))


def test_attention_agrees_with_torch() -> None:
    attention, reference = GridAttention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    reference.load_state_dict(attention.state_dict())
    x = torch.randn(2, 8, 3, 4)
    tokens = x.flatten(2).mT
    expected, _ = reference(tokens, tokens, tokens)
    torch.testing.assert_close(attention(x), expected.mT.unflatten(2, (3, 4)))


def test_periodic_autoencoder_commutes_with_rolls() -> None:
    torch.manual_seed(0)
    options = {**SMALL, "periodic": (True, False), "identity_init": False}
    encoder, decoder = DCEncoder(2, 3, **options), DCDecoder(3, 2, **options)
    x = torch.randn(1, 2, 16, 16)
    rolled = encoder(x.roll(4, dims=2))
    torch.testing.assert_close(rolled, encoder(x).roll(1, dims=2), rtol=1e-4, atol=1e-5)
    y = decoder(encoder(x))
    torch.testing.assert_close(decoder(rolled), y.roll(4, dims=2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(x.roll(4, dims=3)), encoder(x).roll(1, dims=3), atol=1e-3)


def test_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder = DCEncoder(2, 3, **SMALL, checkpointing=True)
    x = torch.randn(1, 2, 8, 8)
    grads = []
    for training in (True, False):
        encoder.train(training).zero_grad()
        encoder(x).square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("pixel_shuffle", [True, False])
def test_blocks_are_given_their_channels_last(pixel_shuffle: bool) -> None:
    options = {**SMALL, "pixel_shuffle": pixel_shuffle, "patch_size": 2}
    encoder, decoder = DCEncoder(3, 2, **options), DCDecoder(2, 3, **options)
    stored = watch_blocks(ResidualBlock, encoder, decoder)
    z = encoder(torch.randn(2, 3, 16, 16))
    assert z.is_contiguous()
    assert decoder(z).is_contiguous()
    assert stored == [True] * 8


def test_autocast_returns_float32_close_by() -> None:
    torch.manual_seed(0)
    encoder = DCEncoder(3, 5, **SMALL, periodic=True)
    x = torch.randn(2, 3, 8, 8)
    expected = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(x)
    assert z.dtype == torch.float32
    assert 0 < (z - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hid_blocks": (1,)}, "same number of levels"),
        ({"attention_heads": {3: 1}}, "level"),
        ({"attention_heads": {2: 3}}, "3 heads"),
        ({"norm": "batch"}, "batch"),
        ({"stride": (2,)}, "stride"),
    ],
)
def test_encoder_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DCEncoder(1, 1, **{**SMALL, **options})
