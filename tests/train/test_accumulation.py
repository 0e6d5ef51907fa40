"""Gradients add up in float32 under autocast: 64 micro-batches at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks

WORKER = str(Path(__file__).with_name("accumulation_worker.py"))
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")


@pytest.mark.ranks
def test_bfloat16_gradients_add_up_in_float32() -> None:
    """To 1e-6 of float64, where a sum in bfloat16 would be off by 1e-3 and more."""
    (output,) = run_ranks([WORKER, *STAGES], 1)
    errors = dict(line.split() for line in output.splitlines() if line.startswith("zero"))
    assert list(errors) == list(STAGES)
    assert all(float(error) < 1e-6 for error in errors.values()), errors
