"""Asking a training to stop: all ranks stop after the same step, saved; then it goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from ranks import Ranks, run_ranks
from reading import assert_same_bits, metrics
from words import overrides

from lola_ds.train.checkpoint.export import find_checkpoint
from lola_ds.train.stop import EXIT_STOPPED

TRAIN = ["-m", "lola_ds.cli.train"]
pytestmark = pytest.mark.ranks


LONG = ["train.epochs=20", "checkpoint.every=20", "deepspeed=zero2"]  # no checkpoint in between


def stop_early(run: Path, words: list[str], number: signal.Signals) -> None:
    """Trains on two ranks and signals one of them after three steps."""
    path = run / "metrics.jsonl"
    with Ranks(words, 2) as ranks:
        ranks.wait_until(lambda: path.is_file() and path.read_text().count("train/loss") >= 3)
        ranks.signal(1, number)
        codes, outputs = ranks.wait(60), ranks.outputs
    assert codes == [EXIT_STOPPED, EXIT_STOPPED], outputs
    step = find_checkpoint(run).state["step"]
    assert 3 <= step < 100
    assert len(metrics(run, "train/loss")) == step
    assert f"stopped at step {step}, saved" in outputs[0]


def test_signal_to_one_rank_stops_all_after_the_same_step(shards: Path, tmp_path: Path) -> None:
    words = [*TRAIN, *overrides("autoencoder", shards, tmp_path / "run", *LONG)]
    stop_early(tmp_path / "run", words, signal.SIGUSR2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_stopped_training_resumes_bit_for_bit(
    number: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    words = [*TRAIN, *overrides("autoencoder", shards, run, *LONG)]
    stop_early(run, words, number)
    run_ranks(words, 2)
    run_ranks([*TRAIN, *overrides("autoencoder", shards, whole, *LONG)], 2)
    assert_same_bits(run, whole)
