"""The published models' sizes, exactly, on the meta device."""

import pytest
import torch

from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate

LARGE = {"hid_channels": [64, 128, 256, 512, 768, 1024], "hid_blocks": [3] * 6}
SMALL = {"hid_channels": [32, 64, 128, 256, 384, 512], "hid_blocks": [3] * 6}
CUBIC = {"hid_channels": [64, 256, 512, 1024], "hid_blocks": [3] * 4, "spatial": 3}

VIT_LARGE = {"hid_channels": 1024, "hid_blocks": 16, "attention_heads": 16}
VIT_SMALL = {"hid_channels": 512, "hid_blocks": 16, "attention_heads": 8}
VIT_PIXEL = {**VIT_LARGE, "hid_channels": 2048, "patch_size": [1, 16, 16]}

EMULATOR = {"label_features": 5, "emb_features": 256, "spatial": 3}


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (5, LARGE, 313_098_629),
        (4, LARGE, 313_097_476),
        (5, SMALL, 78_581_989),
        (6, CUBIC, 741_019_014),
    ],
)
def test_autoencoders(fields: int, options: dict, expected: int) -> None:
    with torch.device("meta"):
        model = make_autoencoder(pix_channels=fields, lat_channels=64, **options)
    assert count(model) == expected


@pytest.mark.parametrize(
    ("options", "expected"), [(VIT_LARGE, 222_888_256), (VIT_SMALL, 60_951_872)]
)
def test_denoisers(options: dict, expected: int) -> None:
    with torch.device("meta"):
        model = make_denoiser(channels=64, schedule={"name": "log_logit"}, **EMULATOR, **options)
    assert count(model) == expected


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [(64, VIT_LARGE, 222_756_672), (64, VIT_SMALL, 60_820_288), (5, VIT_PIXEL, 860_810_240)],
)
def test_surrogates(channels: int, options: dict, expected: int) -> None:
    with torch.device("meta"):
        model = make_surrogate(channels=channels, **EMULATOR, **options)
    assert count(model) == expected
