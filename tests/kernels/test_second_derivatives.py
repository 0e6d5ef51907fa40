"""Second derivatives: where they are needed, operations without them are not used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lola_ds.kernels import enable_second_derivatives, second_derivatives_enabled
from lola_ds.nn.attention import attend


def second_gradient(x: Tensor) -> Tensor:
    q, k, v = x.unbind(0)
    (first,) = torch.autograd.grad(attend(q, k, v).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return second


def test_attention_has_second_derivatives_where_they_are_wanted() -> None:
    x = torch.randn(3, 1, 2, 5, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product"):
        second_gradient(x)
    with enable_second_derivatives():
        assert second_derivatives_enabled()
        assert second_gradient(x).isfinite().all()
    assert not second_derivatives_enabled()
