"""Starting from another model's weights: what fits is copied, the rest is named."""

import pytest
import torch
from torch import nn

from lola_ds.nn.freeze import freeze_parameters
from lola_ds.train.checkpoint.format import CheckpointError
from lola_ds.train.init_from import init_from


def make(width: int = 3) -> nn.Module:
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 2))
    model.register_buffer("scale", torch.tensor(width / 7))
    return model


def test_strictly_everything_is_copied() -> None:
    model, source = make(), {name: tensor + 1 for name, tensor in make().state_dict().items()}
    found = init_from(model, source, "there", strict=True)
    assert all(torch.equal(model.state_dict()[name], source[name]) for name in source)
    assert set(found.loaded) == set(source)
    assert not found.skipped
    assert not found.left


def test_strictly_a_difference_is_refused_before_anything_is_copied() -> None:
    model, before = make(3), make(3).state_dict()
    with pytest.raises(CheckpointError, match=r"0\.bias: \(4,\) instead of \(3,\)"):
        init_from(model, make(4).state_dict(), "there", strict=True)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_by_name_and_shape_the_rest_keeps_its_values() -> None:
    model, before, source = make(3), make(3).state_dict(), make(4).state_dict()
    source |= {"new": torch.zeros(1)}
    found = init_from(model, source, "there", strict=False)
    assert set(found.loaded) == {"2.bias", "scale"}
    assert set(found.skipped) == {"0.weight", "0.bias", "2.weight", "new"}
    assert set(found.left) == {"0.weight", "0.bias", "2.weight"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (source if name in found.loaded else before)[name])
    report = found.report().splitlines()
    assert report[0] == "there: 2 tensors loaded, 4 skipped, 3 left at their initial values"
    assert "skipped new: the model has no such tensor" in report
    assert "skipped 0.bias: its shape is (4,), the model's (3,)" in report
    assert "left    0.bias" in report


def test_constants_alone_are_no_common_ground() -> None:
    with pytest.raises(ValueError, match="shares no weights"):
        init_from(make(), {"scale": torch.tensor(1.0), "x": torch.zeros(2)}, "there", strict=False)


def test_fixed_parameters_are_buffers_that_pass_gradients() -> None:
    model, x = make(), torch.randn(4, 2, requires_grad=True)
    before, y = model.state_dict(), model(x)
    freeze_parameters(model[2])
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(model(x), y)
    model(x).sum().backward()
    assert x.grad.any()
    assert model[0].weight.grad.any()
