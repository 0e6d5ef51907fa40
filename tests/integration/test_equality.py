"""How memory is saved changes nothing: stages, offload, recomputation, accumulation and ranks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from reading import metrics, tensors
from words import overrides

WORKER = str(Path(__file__).with_name("train_worker.py"))
STAGES = ("zero0", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
SETTINGS = list(itertools.product(STAGES, ("none", "full", "selective"), (1, 4)))
SLICE = [
    ("zero0", "selective", 4),
    ("zero1_offload", "full", 4),
    ("zero2", "selective", 4),
    ("zero2_offload", "none", 1),
    ("zero3", "full", 1),
    ("zero3_offload", "selective", 4),
]
pytestmark = pytest.mark.ranks


def train(
    settings: list[tuple[str, str, int]], shards: Path, folder: Path, world_size: int
) -> list[Path]:
    """20 steps of 16 samples in float32 with each setting, in one process group."""
    runs, lists = [], []
    for stage, policy, accumulation in settings:
        runs.append(folder / f"{stage}_{policy}_{accumulation}_{world_size}")
        words = ["train.batch_size=16", "train.epoch_size=320", "train.epochs=1"]
        words += [f"deepspeed={stage}", f"surrogate.checkpointing={policy}"]
        words += [f"train.accumulation={accumulation}", "surrogate.hid_blocks=2"]
        lists.append(" ".join(overrides("surrogate", shards, runs[-1], *words)))
    run_ranks([WORKER, *" -- ".join(lists).split()], world_size, timeout=1500)
    return runs


def assert_equal(run: Path, reference: Path) -> None:
    """Losses and gradient norms to 1e-5; weights, moments and averages in the L2 norm."""
    for name in ("train/loss", "train/grad_norm", "valid/loss"):
        expected = metrics(reference, name)
        assert metrics(run, name) == pytest.approx(expected, rel=1e-5), (run.name, name)
    assert len(metrics(run, "train/loss")) == 20
    found, wanted = tensors(run), tensors(reference)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = torch.linalg.vector_norm(found[name] - tensor)
        assert error <= 1e-5 * torch.linalg.vector_norm(tensor), (run.name, name)


def test_saving_memory_changes_nothing(shards: Path, tmp_path: Path) -> None:
    (reference,) = train([("zero0", "none", 1)], shards, tmp_path, 1)
    for run in train(SLICE, shards, tmp_path, 2):
        assert_equal(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_way_of_saving_memory_changes_nothing(shards: Path, tmp_path: Path) -> None:
    """7 stages × 3 policies × 2 accumulations × 3 numbers of ranks."""
    reference, *runs = train(SETTINGS, shards, tmp_path, 1)
    runs += train(SETTINGS, shards, tmp_path, 2) + train(SETTINGS, shards, tmp_path, 4)
    for run in runs:
        assert_equal(run, reference)
