"""Surrogates: what they read, their shapes, their options."""

import pytest
import torch

from lola_ds.models import Surrogate, make_surrogate

TINY = {"channels": 2, "hid_channels": 8, "hid_blocks": 1, "attention_heads": 2, "emb_features": 8}


def make(**options: object) -> Surrogate:
    torch.manual_seed(0)
    return make_surrogate(**{**TINY, "spatial": 3, **options}).eval()


def test_unknown_frames_are_not_read() -> None:
    model = make(label_features=3)
    x, label = torch.randn(2, 2, 4, 3, 3), torch.randn(2, 3)
    mask = (torch.arange(4) < 2).view(1, 1, 4, 1, 1)
    y = model(x, mask, label)
    assert y.shape == x.shape
    assert torch.equal(model(torch.where(mask, x, torch.nan), mask, label), y)
    assert torch.equal(model(x, mask.expand_as(x), label), y)
    assert not torch.allclose(model(x + mask, mask, label), y)


def test_labels_matter_where_there_are_some() -> None:
    x, mask = torch.randn(1, 2, 3, 2, 2), torch.ones(1, 1, 3, 1, 1, dtype=torch.bool)
    model = make(label_features=3)
    assert not torch.equal(model(x, mask, torch.zeros(1, 3)), model(x, mask, torch.ones(1, 3)))
    assert make()(x, mask).shape == x.shape


UNET = {"arch": "unet", "hid_channels": [4, 6], "hid_blocks": [1, 1], "attention_heads": {1: 2}}


@pytest.mark.parametrize("arch", ["vit", "unet"])
@pytest.mark.parametrize("spatial", [2, 3, 4])
def test_axes(spatial: int, arch: str) -> None:
    x = torch.randn(1, 2, 3, *[2] * (spatial - 1))
    mask = torch.ones_like(x, dtype=torch.bool)
    model = make(spatial=spatial, **(UNET if arch == "unet" else {}))
    assert model(x, mask).shape == x.shape


@pytest.mark.parametrize(
    ("periodic", "flags"),
    [(True, (True,) * 3), ([False, True, False], (False, True, False)), (False, (False,) * 3)],
)
def test_periodic_names_axes_time_first(periodic: bool | list, flags: tuple) -> None:
    assert make(window_size=3, periodic=periodic).backbone.periodic == flags
    unet = make(**UNET, stride=[1, 2, 2], periodic=periodic).backbone
    assert unet.descent[1][0].circular_padding == flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"surrogate\.heads is unknown"),
        ({"arch": "mlp"}, "mlp"),
        ({"attention_heads": 3}, "attention_heads=3"),
        ({"periodic": [True]}, "periodic"),
        ({**UNET, "rope": True}, r"surrogate\.rope is unknown"),
    ],
)
def test_make_surrogate_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
