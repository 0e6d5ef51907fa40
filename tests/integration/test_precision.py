"""float16 trainings: every stage alike, overflows left out and counted, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks
from reading import assert_same_bits, metrics
from words import overrides

from lola_ds.train.checkpoint.export import find_checkpoint

WORKER = str(Path(__file__).with_name("watch_worker.py"))
WORDS = ["precision=fp16", "watch.patience=1", "surrogate.dropout=0.1", "optim.scheduler=constant"]
pytestmark = pytest.mark.ranks


def test_float16_scales_its_loss(shards: Path, tmp_path: Path) -> None:
    """A scale far too large at step 2 is halved until gradients fit; no step is bad for it."""
    runs = {name: tmp_path / name for name in ("zero0", "zero2", "zero3_offload")}
    jobs = [(run, f"deepspeed={name}", "train.epochs=2") for name, run in runs.items()]
    jobs += [(tmp_path / "cut", "deepspeed=zero2", f"train.epochs={n}") for n in (1, 2)]
    lists = [" ".join(overrides("surrogate", shards, *job, *WORDS)) for job in jobs]
    run_ranks([WORKER, *"scale 0 2 26 --".split(), *" -- ".join(lists).split()], 2)
    first = runs["zero0"]
    overflows = metrics(first, "train/overflows")
    assert overflows[:2] == [0, 0]
    assert overflows[4] >= 1
    assert metrics(first, "train/loss_scale")[-1] == 2.0 ** (26 - overflows[-1])
    for run in runs.values():
        assert metrics(run, "train/loss_scale") == metrics(first, "train/loss_scale")
        assert metrics(run, "train/loss") == pytest.approx(metrics(first, "train/loss"), rel=2e-3)
        assert metrics(run, "train/skipped") == []
        updates = find_checkpoint(run).state["updates"]
        assert updates == 10 - overflows[-1] == len(metrics(run, "train/grad_norm"))
    assert_same_bits(tmp_path / "cut", runs["zero2"])
