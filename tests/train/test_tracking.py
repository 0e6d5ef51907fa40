"""The record of a run: JSON lines, and TensorBoard's event files as its own reader sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lola_ds.train.tracking import Tracker

CONFIG = {"task": "surrogate", "wandb": {"mode": "disabled"}, "tensorboard": True}


def record(folder: Path, step: int, losses: dict[int, float]) -> None:
    """One start of a run, which continues from `step`."""
    tracker = Tracker(folder, CONFIG, total=100, done=step, step=step, enabled=True)
    for at, loss in losses.items():
        tracker.advance(1, loss)
        tracker.log(at, {"train/loss": loss, "mfu": 0.5 / at})
    tracker.close()


def test_tensorboard_reads_the_numbers_of_the_record(tmp_path: Path) -> None:
    """A run that was killed after step 30 and resumed from step 20, whose steps it does again."""
    record(tmp_path, 0, {10: 1.0, 20: 0.75, 30: 9.0})
    record(tmp_path, 20, {30: 0.5, 40: 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/loss"] for line in lines] == [1.0, 0.75, 0.5, 0.25]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "mfu"}
    for name in ("train/loss", "mfu"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["step"], pytest.approx(line[name])) for line in lines]
    times = [event.wall_time for event in events.Scalars("mfu")]
    assert times == pytest.approx([line["time"] for line in lines], abs=1e-3)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, CONFIG, total=100, done=0, step=0, enabled=False)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert not list(tmp_path.iterdir())
