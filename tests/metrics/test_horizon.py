"""The correlation time on series whose crossing is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.metrics import correlation_time

TIMES = torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        ([0.9, 0.7, 0.1], 1.5),
        ([0.6, 0.9, 0.9], 0.5),  # the first crossing counts
        ([0.95, 0.9, 0.85], 4.0),  # never: the last lead time
        ([0.9, 0.9, 0.7], 3.0),
        ([-1.0, -1.0, -1.0], 0.1),
    ],
)
def test_a_crossing_between_lead_times(rho: list[float], expected: float) -> None:
    found = correlation_time(torch.tensor(rho, dtype=torch.float64), TIMES, 0.8)
    assert float(found) == pytest.approx(expected)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0.1, 0.99))
@settings(max_examples=100, deadline=None)
def test_a_walk_along_the_line_finds_the_same(rho: list[float], threshold: float) -> None:
    x, y, expected = [0.0, *TIMES.tolist()], [1.0, *rho], 4.0
    for i in range(3):
        if y[i + 1] < threshold:
            expected = x[i] + (y[i] - threshold) / (y[i] - y[i + 1]) * (x[i + 1] - x[i])
            break
    found = correlation_time(torch.tensor([rho, rho], dtype=torch.float64), TIMES, threshold)
    assert found.tolist() == pytest.approx([expected, expected], abs=1e-9)
