"""Faults planted on one rank of a real training: NaN skipped at every stage, a stall reported."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from ranks import Ranks, run_ranks
from reading import assert_same_bits, metrics, tensors
from words import overrides

from lola_ds.train.checkpoint.export import find_checkpoint

WORKER = str(Path(__file__).with_name("watch_worker.py"))
STAGES = ("zero0", "zero1", "zero2", "zero3")
STAGES += ("zero1_offload", "zero2_offload", "zero3_offload", "zero3_nvme")
pytestmark = pytest.mark.ranks


def train(fault: str, runs: dict[Path, list[str]], shards: Path, world_size: int = 2) -> str:
    """Trains every run with the fault; returns what the first rank said."""
    lists = [overrides("surrogate", shards, run, *more) for run, more in runs.items()]
    words = [f"{fault} --", " -- ".join(" ".join(words) for words in lists)]
    return run_ranks([WORKER, *" ".join(words).split()], world_size)[0]


def test_nan_on_one_rank_is_skipped_at_every_stage(shards: Path, tmp_path: Path) -> None:
    """At step 3 of rank 1: named, and gone from weights, averages and optimizer states."""
    runs = {tmp_path / stage: [f"deepspeed={stage}", "train.epochs=2"] for stage in STAGES}
    runs[tmp_path / "zero3_nvme"] += [f"deepspeed.nvme_path={tmp_path}"]
    said = train("nan 1 3 1", runs, shards)
    assert said.count("step 3 skipped: the loss is nan (rank 1: window ") == len(runs)
    assert said.count(", field pressure)") == len(runs)
    expected = metrics(tmp_path / "zero0", "train/loss")
    for run in runs:
        assert metrics(run, "train/skipped") == [1]
        assert metrics(run, "train/loss") == pytest.approx(expected, rel=1e-5)
        assert len(expected) == 9
        state = find_checkpoint(run).state
        assert (state["step"], state["updates"]) == (10, 9)
        for name, tensor in tensors(run).items():
            reference = tensors(tmp_path / "zero0")[name]
            torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-6)
            assert tensor.isfinite().all()


def test_too_many_bad_steps_stop_before_the_next_checkpoint(shards: Path, tmp_path: Path) -> None:
    """Then the same command, the fault mended, ends as if nothing had been."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["watch.patience=2", "train.accumulation=2", "train.epochs=2", "deepspeed=zero2"]
    train("nan 1 6 5", {run: words}, shards)
    told = (run / "stopped").read_text()
    assert "step 7 skipped: the loss is nan (rank 1: window " in told
    assert "2 in a row (watch.patience)" in told
    assert find_checkpoint(run).state["step"] == 5
    train("nan 1 99 0", {run: words, whole: words}, shards)
    assert_same_bits(run, whole)


@pytest.mark.parametrize("seconds", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_stalled_rank_is_reported_by_all(seconds: int, shards: Path, tmp_path: Path) -> None:
    words = overrides("surrogate", shards, tmp_path / "run", f"watch.timeout={seconds}")
    fault = f"stall 1 2 {10 * seconds} --".split()
    with Ranks([WORKER, *fault, *words], 2) as ranks:
        codes, outputs = ranks.wait(240), ranks.outputs
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"Timeout (0:00:{seconds:02d})!" in output
        assert "train_step" in output
    assert "in prepare" in outputs[1]
    assert "in prepare" not in outputs[0]


def test_record_says_how_fast_and_what_for(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["train.epochs=1", "train.accumulation=2", "profile.steps=2-4"]
    train("nan 0 99 0", {run: more}, shards, world_size=1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    for line in steps:
        assert line["tokens_per_second"] == pytest.approx(48 * line["samples_per_second"])
        assert line["tflops_per_rank"] > 0
        assert 0 < line["data_wait"] < 1
        assert line["step_seconds_p50"] <= line["step_seconds_p99"]
        leads = [line[key] for key in ("train/by_lead/1", "train/by_lead/2") if key in line]
        assert leads
    (valid,) = (line for line in lines if "valid/loss" in line)
    assert valid["valid/by_lead/1"] > 0
    trace = gzip.decompress((run / "profile" / "trace_rank_00000.json.gz").read_bytes())
    names = {event.get("name") for event in json.loads(trace)["traceEvents"]}
    assert any("addmm" in str(name) for name in names)
