"""Transforms and standardisation: against NumPy in float64, inverses, errors."""

import numpy as np
import pytest
import torch

from lola_ds.fields import TRANSFORMS, Standardize

REFERENCE = {
    "log": np.log,
    "log_eps": lambda x: np.log(x + 1e-6),
    "log1p": np.log1p,
    "arcsinh": np.arcsinh,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dim", [0, 1, -3])
def test_standardize_follows_its_formula(name: str, dim: int) -> None:
    x = torch.rand(3, 3, 3, 4, dtype=torch.float64) + 0.1
    standardize = Standardize([0.5, -1.0, 2.0], [0.5, 2.0, 3.0], {1: name})
    z = standardize(x, dim=dim)
    for c, (mean, std) in enumerate([(0.5, 0.5), (-1.0, 2.0), (2.0, 3.0)]):
        channel = x.select(dim, c).numpy()
        expected = ((REFERENCE[name](channel) if c == 1 else channel) - mean) / std
        np.testing.assert_allclose(z.select(dim, c).numpy(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(standardize.inverse(z, dim=dim), x.float(), rtol=1e-5, atol=1e-6)


def test_standardize_never_changes_its_input() -> None:
    x = torch.rand(2, 2, 4)
    before = x.clone()
    standardize = Standardize([0.0, 0.0], [1.0, 1.0], {0: "log1p"})
    z = standardize(x)
    kept = z.clone()
    standardize.inverse(z)
    assert torch.equal(x, before)
    assert torch.equal(z, kept)


def test_statistics_are_not_weights() -> None:
    standardize = Standardize([1.0], [2.0])
    assert not standardize.state_dict()
    assert not list(standardize.parameters())
    assert standardize(torch.ones(1, 1, 2, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [1.0, 1.0]), "1 means but 2"),
        (([0.0], [0.0]), "positive"),
        (([0.0], [1.0], {1: "log"}), "channel 1"),
        (([0.0], [1.0], {0: "sqrt"}), "sqrt"),
    ],
)
def test_standardize_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Standardize(*arguments)


def test_standardize_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match="should hold 1 channels"):
        Standardize([0.0], [1.0])(torch.zeros(1, 2, 4))
