"""`compile` and `kernels` in real trainings: every ZeRO stage, recomputation, resuming."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from reading import assert_same_bits, metrics
from words import overrides

from lola_ds.train.checkpoint.format import list_checkpoints

WORKER = str(Path(__file__).with_name("train_worker.py"))
pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(1200)]


def train_all(runs: dict[Path, list[str]], task: str, data: Path, world_size: int) -> None:
    """Trains each run with its extra words, in one start of the ranks."""
    words = " -- ".join(" ".join(overrides(task, data, run, *more)) for run, more in runs.items())
    run_ranks([WORKER, *words.split()], world_size, {"TRITON_INTERPRET": "1"}, timeout=1000)


def assert_close(run: Path, expected: Path, steps: int, tolerance: float) -> None:
    assert len(metrics(run, "train/loss")) == steps
    for name in ("train/loss", "train/grad_norm", "valid/loss"):
        reference = metrics(expected, name)
        assert metrics(run, name) == pytest.approx(reference, rel=tolerance), (run, name)


def test_compiled_trainings_equal_eager_ones(shards: Path, tmp_path: Path) -> None:
    """20 steps on 2 ranks at every stage; with recomputation; resumed with the same bits."""
    runs = {tmp_path / "eager": ["deepspeed=zero2"]}
    runs |= {tmp_path / f"zero{s}": [f"deepspeed=zero{s}", "compile=true"] for s in range(4)}
    full = [*runs[tmp_path / "zero3"], "surrogate.checkpointing=full"]
    runs[tmp_path / "full"] = full
    train_all(runs, "surrogate", shards, 2)
    for run in runs:
        assert_close(run, tmp_path / "eager", 20, 1e-4)
    again = {}
    for name in ("zero3", "full"):
        again[tmp_path / f"{name}_again"] = runs[tmp_path / name]
        shutil.copytree(tmp_path / name, tmp_path / f"{name}_again")
        shutil.rmtree(list_checkpoints(tmp_path / f"{name}_again" / "checkpoints")[-1])
    train_all(again, "surrogate", shards, 2)
    for name in ("zero3", "full"):
        assert_same_bits(tmp_path / f"{name}_again", tmp_path / name)


@pytest.mark.parametrize("task", ["autoencoder", "diffusion"])
def test_compiled_networks_of_other_kinds(task: str, shards: Path, tmp_path: Path) -> None:
    words = ["ae.dropout=null", "deepspeed=zero3", "train.epochs=1"]
    more = ["compile=true", "ae.checkpointing=full", "denoiser.checkpointing=full"]
    train_all({tmp_path / "eager": words, tmp_path / "run": [*words, *more]}, task, shards, 2)
    assert_close(tmp_path / "run", tmp_path / "eager", 5, 1e-4)


def test_kernels_under_zero3(shards: Path, tmp_path: Path) -> None:
    """50 steps of diffusion on 2 ranks, whose kernels run in the interpreter; then compiled."""
    words = ["deepspeed=zero3", "train.epochs=10", "trajectory.length=2"]
    words += ["denoiser.attention_heads=1", "denoiser.patch_size=[1,8,8]"]
    fused = [*words, "kernels=triton", "denoiser.checkpointing=full"]
    runs = {"torch": [*words, "kernels=torch"], "triton": fused}
    runs["compiled"] = [*fused, "compile=true"]
    train_all({tmp_path / name: more for name, more in runs.items()}, "diffusion", shards, 2)
    for name in ("triton", "compiled"):
        assert_close(tmp_path / name, tmp_path / "torch", 50, 1e-4)
