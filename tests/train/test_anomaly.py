"""Which steps are skipped, when training stops, and what each rank has seen."""

from __future__ import annotations

import math

import pytest
import torch

from lola_ds.data import Batch
from lola_ds.train.anomaly import AnomalyDetector, AnomalyLocator

NAN = math.nan


def test_what_is_not_finite_is_skipped() -> None:
    detector = AnomalyDetector(patience=2)
    assert detector.judge(1.0, 2.0) == ""
    assert detector.judge(NAN, 2.0) == "the loss is nan"
    assert detector.judge(1.0, math.inf) == "the gradient norm is inf"
    assert detector.exhausted
    assert detector.judge(1.0, 2.0) == ""
    assert not detector.exhausted
    assert detector.skipped == 2


def test_spikes_are_measured_against_the_recent_median() -> None:
    detector = AnomalyDetector(patience=3, spike=4.0)
    assert detector.judge(1.0, 1000.0) == ""  # nothing to compare with yet
    for _ in range(16):
        assert detector.judge(1.0, 2.0) == ""
    assert detector.judge(1.0, 7.9) == ""
    assert detector.judge(1.0, 8.1) == "the gradient norm 8.1 is a spike over its median 2"
    assert AnomalyDetector(patience=3).judge(1.0, 1e9) == ""


def test_resumed_guard_decides_alike() -> None:
    first = AnomalyDetector(3, 4.0)
    for norm in torch.rand(40).tolist():
        first.judge(1.0, 1 + norm)
    second = AnomalyDetector(3, 4.0, first.state_dict())
    for norm in (1.5, 5.0, 20.0, 1.2):
        assert first.judge(1.0, norm) == second.judge(1.0, norm)
    assert first.state_dict() == second.state_dict()


def make_batch(x: torch.Tensor) -> Batch:
    ids = torch.arange(10, 10 + len(x))
    return Batch(x, torch.zeros(len(x), 1), ids, torch.ones(len(x)), ids)


@pytest.mark.parametrize(("fields", "name"), [(["rho", "p"], "p"), (["rho", "p", "u"], "1")])
def test_witness_names_window_and_field(fields: list[str], name: str) -> None:
    """By the channel's number where channels are not the fields, as in latents."""
    locator = AnomalyLocator(3, fields)
    x = torch.zeros(2, 2, 3, 4, 4)
    locator.see(make_batch(x), torch.tensor(1.0))
    assert locator.tell() == ""
    x = x.clone()
    x[1, 1, 2, 0, 3] = math.inf
    locator.see(make_batch(x), torch.tensor(NAN))
    assert locator.tell() == f"rank 3: window 11, field {name}"
    assert locator.windows() == [10, 11, 10, 11]
    locator.forget()
    locator.see(make_batch(torch.zeros(2, 2, 3, 4, 4)), torch.tensor(NAN))
    assert locator.tell() == "rank 3: loss of windows [10, 11], whose fields are finite"
