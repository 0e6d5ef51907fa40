"""Optimizer state through JSON and plain tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.train.checkpoint.packing import pack, unpack

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tensors = st.sampled_from([torch.float64, torch.int64, torch.bfloat16]).flatmap(
    lambda dtype: st.integers(0, 5).map(lambda n: torch.arange(n).to(dtype))
)
trees = st.recursive(
    scalars | tensors | st.sets(st.integers()),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner)
    ),
    max_leaves=12,
)


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            assert_equal(*pair)
    else:
        assert found == expected


@given(trees)
@settings(max_examples=30, deadline=None)
def test_round_trip(tree: Any) -> None:
    structure, parts = pack(tree)
    assert_equal(unpack(json.loads(json.dumps(structure)), parts), tree)


def test_functions_are_refused() -> None:
    with pytest.raises(TypeError, match="function cannot be saved"):
        pack({"schedule": lambda step: step})
