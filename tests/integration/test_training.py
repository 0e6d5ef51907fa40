"""The training command on real ranks: kill and resume, fork, the launcher."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT, Ranks, free_port, run_ranks
from reading import assert_same_bits, metrics
from words import overrides

from lola_ds.train.checkpoint.format import list_checkpoints

TRAIN = ["-m", "lola_ds.cli.train"]
WORKER = str(Path(__file__).with_name("train_worker.py"))
LONG = [pytest.mark.slow, pytest.mark.timeout(1200)]
pytestmark = pytest.mark.ranks


def train_all(runs: dict[Path, list[str]], task: str, data: Path, world_size: int) -> None:
    """Trains each run with its extra words, in one start of the ranks."""
    words = " -- ".join(" ".join(overrides(task, data, run, *more)) for run, more in runs.items())
    run_ranks([WORKER, *words.split()], world_size)


def kill_after(words: list[str], world_size: int, steps: int, run: Path) -> None:
    """Starts a training and kills all its ranks once `steps` lines of metrics are there."""
    path = run / "metrics.jsonl"
    with Ranks(words, world_size) as ranks:
        ranks.wait_until(
            lambda: path.is_file() and path.read_text().count("train/loss") >= steps, seconds=120
        )


@pytest.mark.parametrize(
    ("task", "kills", "more"),
    [
        pytest.param("autoencoder", 2, ["deepspeed=zero2"], marks=LONG),
        pytest.param("autoencoder", 3, ["deepspeed=zero0", "optim=psgd"], marks=LONG),
        pytest.param("surrogate", 3, ["deepspeed=zero0", "optim=schedule_free"], marks=LONG),
        pytest.param("diffusion", 10, ["deepspeed=zero2"], marks=LONG),
    ],
)
def test_killed_training_resumes_bit_for_bit(
    task: str, kills: int, more: list[str], shards: Path, tmp_path: Path
) -> None:
    """SIGKILL at random steps; the same command ends with the same bits (dropout on)."""
    words = [*TRAIN, *overrides(task, shards, tmp_path / "whole", *more)]
    run_ranks(words, 2)
    run = tmp_path / "killed"
    words = [*TRAIN, *overrides(task, shards, run, *more)]
    rng = random.Random(os.environ.get("KILL_SEED", "0"))
    for _ in range(kills):
        kill_after(words, 2, rng.randint(1, 19), run)
    run_ranks(words, 2)
    assert_same_bits(run, tmp_path / "whole")
    assert 2 <= len(list_checkpoints(run / "checkpoints")) <= 3  # the newest two and the best
    assert not list((run / "checkpoints").glob(".*.partial"))


def test_fork_starts_from_another_run(shards: Path, tmp_path: Path) -> None:
    """The first loss of a fork is what its source reached, not that of fresh weights."""
    first, fork = tmp_path / "first", tmp_path / "fork"
    train_all({first: ["train.epochs=8"]}, "surrogate", shards, 1)
    train_all({fork: [f"fork.run={first}", "train.epochs=1"]}, "surrogate", shards, 1)
    fresh, reached = metrics(first, "train/loss")[0], metrics(first, "train/loss")[-1]
    assert abs(metrics(fork, "train/loss")[0] - reached) < 0.25 * (fresh - reached)


def test_complete_run_does_nothing_more(shards: Path, tmp_path: Path) -> None:
    words = overrides("surrogate", shards, tmp_path / "run", "train.epochs=1")
    run_ranks([*TRAIN, *words], 1)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (output,) = run_ranks([*TRAIN, *words], 1)
    assert "is complete (5 steps)" in output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_deepspeed_launcher_starts_two_ranks(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = overrides("autoencoder", shards, run, "train.epochs=1", "wandb.mode=offline")
    launcher = Path(sys.executable).with_name("deepspeed")
    module = ["--module", "lola_ds.cli.train"]
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [launcher, "--num_gpus=2", f"--master_port={free_port()}", *module, *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "world_size 2" in (run / "environment.txt").read_text()
    assert len(metrics(run, "train/loss")) == 5
    assert list((run / "wandb").glob("offline-run-*"))
    for name in ("config.yaml", "ds_config.json", "latest"):
        assert (run / name).is_file()
