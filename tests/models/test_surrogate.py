"""Surrogates: what they read, their shapes, their options."""

import pytest
import torch

from lola_ds.models import Surrogate, make_surrogate
from lola_ds.models.surrogate import window_axes

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


@pytest.mark.parametrize("spatial", [2, 3, 4])
def test_axes(spatial: int) -> None:
    x = torch.randn(1, 2, 3, *[2] * (spatial - 1))
    mask = torch.ones_like(x, dtype=torch.bool)
    assert make(spatial=spatial)(x, mask).shape == x.shape


def test_time_does_not_wrap() -> None:
    assert window_axes(True, 3) == (False, True, True)
    assert window_axes([True, False], 3) == (False, True, False)
    assert window_axes([True, True, True], 3) == (True, True, True)
    assert window_axes(False, 2) == (False, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"surrogate\.heads is unknown"),
        ({"arch": "mlp"}, "mlp"),
        ({"attention_heads": 3}, "attention_heads=3"),
        ({"periodic": [True]}, "periodic"),
    ],
)
def test_make_surrogate_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
