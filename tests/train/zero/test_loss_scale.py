"""When the loss's scale shrinks, grows, and leaves a step to the detector."""

from __future__ import annotations

import math

from lola_ds.train.zero.loss_scale import LossScale


def test_an_overflow_halves_the_scale() -> None:
    scale = LossScale(enabled=True)
    start = scale.value
    assert scale.overflowed(1.0, math.inf)
    assert scale.overflowed(1.0, math.nan)
    assert (scale.value, scale.overflows) == (start / 4, 2)
    assert not scale.overflowed(1.0, 3.0)
    assert scale.value == start / 4


def test_what_no_scale_mends_is_no_overflow() -> None:
    """A loss that is not finite, and a gradient that is not at scale 1."""
    scale = LossScale(enabled=True, state={"value": 2.0})
    assert not scale.overflowed(math.nan, math.nan)
    assert scale.overflowed(1.0, math.inf)
    assert not scale.overflowed(1.0, math.inf)
    assert (scale.value, scale.overflows) == (1.0, 1)
    assert not LossScale(enabled=False).overflowed(1.0, math.inf)


def test_grows_after_2000_steps_without_overflow_and_resumes_alike() -> None:
    scale = LossScale(enabled=True)
    start = scale.value
    scale.overflowed(1.0, math.inf)
    for _ in range(1999):
        scale.overflowed(1.0, 1.0)
    resumed = LossScale(enabled=True, state=scale.state_dict())
    for each in (scale, resumed):
        assert each.value == start / 2
        each.overflowed(1.0, 1.0)
        assert each.value == start
    assert scale.state_dict() == resumed.state_dict()
