"""Rates, waiting, percentiles and memory of a training."""

from __future__ import annotations

import pytest
import torch

from lola_ds.train import throughput as module
from lola_ds.train.profiling import parse_window
from lola_ds.train.throughput import Throughput


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    value = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: value[0])
    return value


def test_rates_follow_from_time_and_shapes(now: list[float]) -> None:
    """Steps of 1, 2 and 5 seconds, of which 0.5 waiting each."""
    throughput = Throughput(torch.device("cpu"), world_size=2, flops=3e12, tokens=10)
    for seconds in (1.0, 2.0, 5.0):
        with throughput.step(samples=8):
            with throughput.waiting():
                now[0] += 0.5
            now[0] += seconds - 0.5
    now[0] += 100.0  # validation between steps counts for nothing
    values = throughput.lap()
    assert values["samples_per_second"] == 3.0
    assert values["tokens_per_second"] == 30.0
    assert values["tflops_per_rank"] == pytest.approx(4.5)
    assert values["data_wait"] == pytest.approx(1.5 / 8)
    assert values["step_seconds_p50"] == 2.0
    assert values["step_seconds_p99"] == pytest.approx(4.94)
    assert 0.01 < values["memory_host"] < 1000
    assert "mfu" not in values


def test_laps_are_apart(now: list[float]) -> None:
    throughput = Throughput(torch.device("cpu"))
    for seconds in (5.0, 1.0):
        with throughput.step(samples=1):
            now[0] += seconds
        assert throughput.lap()["samples_per_second"] == 1 / seconds


def test_window_of_the_profiler() -> None:
    assert parse_window("10-15") == range(10, 15)
    assert parse_window(None) == range(0)
    for text in ("10", "5-5", "7-2", "a-b"):
        with pytest.raises(ValueError, match=f"profile.steps={text}: expected FIRST-END"):
            parse_window(text)
