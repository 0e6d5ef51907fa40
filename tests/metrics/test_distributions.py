"""Distances of distributions against SciPy, known answers and their own properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from lola_ds.metrics import sliced_wasserstein, wasserstein


@given(spatial=st.integers(1, 3), weighted=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_the_distance_is_scipys(spatial: int, weighted: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, size=spatial))
    u, v = rng.normal(0, 1, (2, *shape)), rng.normal(0.5, 2, (2, *shape))
    volumes = rng.uniform(0.1, 2, shape) if weighted else np.ones(shape)
    given = torch.from_numpy(volumes / volumes.mean()) if weighted else None
    found = wasserstein(torch.from_numpy(u), torch.from_numpy(v), spatial, given)
    w = volumes.ravel()
    expected = [wasserstein_distance(u[i].ravel(), v[i].ravel(), w, w) for i in range(2)]
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)


def test_a_displaced_field_has_the_same_distribution() -> None:
    u = torch.randn(3, 16, 16)
    v = u.roll(5, dims=-1)
    assert float(wasserstein(u, v, 2).max()) == 0
    assert float(sliced_wasserstein(u, v, 2)) < 1e-6


def test_a_shift_of_all_values_is_the_distance() -> None:
    u = torch.randn(2, 32, 32, dtype=torch.float64)
    assert wasserstein(u, u + 0.3, 2).tolist() == pytest.approx([0.3, 0.3])
    volumes = torch.full((32, 32), 1.0, dtype=torch.float64)
    assert wasserstein(u, u + 0.3, 2, volumes).tolist() == pytest.approx([0.3, 0.3])


def test_the_sliced_distance_sees_relations_between_fields() -> None:
    """Two equal fields against two independent ones: each field alone looks the same."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 200, generator=generator)
    together, apart = torch.stack([x, x]), torch.stack([x, y])
    assert float(wasserstein(together, apart, 2).max()) < 0.02
    assert float(sliced_wasserstein(together, apart, 2)) > 0.1


def test_the_sliced_distance_has_no_unit() -> None:
    u, v = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    scale = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)[:, None, None]
    a, b = sliced_wasserstein(u, v, 2), sliced_wasserstein(7 + scale * u, 7 + scale * v, 2)
    assert float(b) == pytest.approx(float(a))
    many = sliced_wasserstein(u, torch.stack([v, u]), 2)
    assert many.tolist() == pytest.approx([float(a), 0])
    assert bool(sliced_wasserstein(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), 2).isfinite())
