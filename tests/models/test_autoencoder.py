"""Autoencoders: saturations, latent noise in training only, options."""

import math

import pytest
import torch

from lola_ds.models import make_autoencoder
from lola_ds.models.autoencoder import SATURATIONS

SMALL = {"pix_channels": 2, "lat_channels": 3, "hid_channels": [4, 6], "hid_blocks": [1, 1]}

REFERENCE = {
    "softclip2": lambda z: z / math.sqrt(1 + (z / 5) ** 2),
    "softclip": lambda z: z / (1 + abs(z) / 5),
    "tanh": lambda z: 5 * math.tanh(z / 5),
    "arcsinh": math.asinh,
    "none": lambda z: z,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_saturations_follow_their_formulas(name: str) -> None:
    z = torch.linspace(-40, 40, 21, dtype=torch.float64)
    expected = torch.tensor([REFERENCE[name](v) for v in z.tolist()], dtype=torch.float64)
    y = SATURATIONS[name](z)
    torch.testing.assert_close(y, expected)
    if name in ("softclip2", "softclip", "tanh"):
        assert y.abs().max() <= 5


def test_rmsnorm_saturation_is_over_channels() -> None:
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = z / (z.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(SATURATIONS["rmsnorm"](z), expected)


def test_latent_noise_is_seeded_and_for_training_only() -> None:
    torch.manual_seed(0)
    model = make_autoencoder(**SMALL, latent_noise=0.5)
    x, seeds = torch.randn(3, 2, 8, 8), torch.tensor([5, 6, 7])
    clean, z = model(x)
    noisy, z_noisy = model(x, seeds)
    assert torch.equal(z, z_noisy)
    assert not torch.allclose(clean, noisy, atol=1e-3)
    assert torch.equal(model(x, seeds)[0], noisy)
    alone, _ = model(x[1:2], seeds[1:2])
    torch.testing.assert_close(alone, noisy[1:2])

    model.eval()
    torch.testing.assert_close(model(x, seeds)[0], clean)
    torch.testing.assert_close(model.decode(model.encode(x)), clean)


def test_latent_noise_has_its_standard_deviation() -> None:
    model = make_autoencoder(**SMALL, latent_noise=0.3)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    _, z = model(torch.randn(16, 2, 32, 32), torch.arange(16))
    assert abs((seen[0] - z).std() - 0.3) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, r"ae\.depth is unknown"),
        ({"arch": "vit", "pixel_shuffle": True}, r"ae\.pixel_shuffle is unknown"),
        ({"arch": "unet"}, "unet"),
        ({"saturation": "relu"}, "relu"),
        ({"latent_noise": -1.0}, "latent_noise"),
    ],
)
def test_make_autoencoder_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_autoencoder(**{**SMALL, **options})


VIT = {"arch": "vit", "hid_channels": 8, "hid_blocks": 1, "attention_heads": 2}


@pytest.mark.parametrize(
    ("shape", "options", "latent"),
    [
        ((16,), {"patch_size": 4}, (4,)),
        ((8, 16), {"patch_size": [2, 4]}, (4, 4)),
        ((8, 8), {"patch_size": 4, "unpatch_size": 2, "window_size": 1}, (4, 4)),
        ((4, 4, 8), {"patch_size": 4, "unpatch_size": [1, 2, 2]}, (1, 2, 4)),
    ],
)
def test_vision_transformers_compress(shape: tuple, options: dict, latent: tuple) -> None:
    model = make_autoencoder(**{**SMALL, **VIT}, spatial=len(shape), **options)
    x = torch.randn(2, 2, *shape)
    y, z = model(x)
    assert z.shape == (2, 3, *latent)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_descriptive_keys_change_nothing() -> None:
    model = make_autoencoder(**SMALL, name="small", loss={"losses": ["mse"], "weights": [1.0]})
    assert model.saturation == "softclip2"
