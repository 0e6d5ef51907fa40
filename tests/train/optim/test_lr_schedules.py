"""Learning rates against their closed forms."""

from __future__ import annotations

import math

import pytest

from lola_ds.config import SCHEDULERS
from lola_ds.train.optim.schedules import SCHEDULES, make_schedule

STEPS, PEAK = 1000, 2e-3


def rates(scheduler: str, warmup: int = 0) -> list[float]:
    config = {"learning_rate": PEAK, "warmup": warmup, "scheduler": scheduler}
    rate = make_schedule(config, STEPS)
    return [rate(step) for step in range(STEPS + 1)]


CLOSED = {
    "cosine": lambda t: 1e-3 + 0.999 * math.cos(math.pi * t / 2) ** 2,
    "linear": lambda t: 1 - 0.999 * t,
    "exponential": lambda t: 10 ** (-3 * t),
    "constant": lambda t: 1.0,
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_decay(scheduler: str) -> None:
    expected = [PEAK * CLOSED[scheduler](step / STEPS) for step in range(STEPS + 1)]
    assert rates(scheduler) == pytest.approx(expected, rel=1e-12)


def test_configuration_and_code_know_the_same() -> None:
    assert set(SCHEDULES) == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_warmup_multiplies_the_decay(scheduler: str) -> None:
    warm, cold = rates(scheduler, warmup=40), rates(scheduler)
    for step in range(STEPS + 1):
        assert warm[step] == pytest.approx(min(1, (step + 1) / 40) * cold[step], rel=1e-12)
    assert warm[0] == pytest.approx(PEAK / 40)


def test_beyond_the_end_nothing_changes() -> None:
    rate = make_schedule({"learning_rate": PEAK, "warmup": 0, "scheduler": "linear"}, STEPS)
    assert rate(STEPS + 7) == rate(STEPS) == pytest.approx(1e-3 * PEAK)
