"""How memory is saved changes nothing: stages, offload, recomputation, accumulation and ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from reading import metrics, tensors
from words import overrides

WORKER = str(Path(__file__).with_name("train_worker.py"))
GROUPS = {"autoencoder": "ae", "surrogate": "surrogate", "diffusion": "denoiser"}
STAGES = ("zero0", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
STAGES += ("zero3_nvme",)
Setting = tuple[str, str, str, int]
"""Task, DeepSpeed file, what is recomputed, micro-batches of a step."""
SLICE: list[Setting] = [
    ("autoencoder", "zero3_offload", "offload", 2),
    ("surrogate", "zero1_offload", "full", 4),
    ("diffusion", "zero2", "none", 2),
    ("diffusion", "zero3", "selective", 4),
    ("diffusion", "zero3_nvme", "full", 4),
]
pytestmark = pytest.mark.ranks


def train(
    settings: Sequence[Setting], shards: Path, folder: Path, world_size: int, *more: str
) -> dict[Path, str]:
    """20 steps of 16 samples in float32 for each setting, in one process group."""
    runs, lists = {}, []
    for task, stage, policy, accumulation in settings:
        run = folder / f"{task}_{stage}_{policy}_{accumulation}_{world_size}"
        words = ["train.batch_size=16", "train.epoch_size=320", "train.epochs=1"]
        words += [f"deepspeed={stage}", f"{GROUPS[task]}.checkpointing={policy}"]
        words += [f"train.accumulation={accumulation}", "ae.dropout=null"]  # drawn for each rank
        words += [f"deepspeed.nvme_path={folder}"] if stage.endswith("nvme") else []
        lists.append(" ".join(overrides(task, shards, run, *words, *more)))
        runs[run] = task
    run_ranks([WORKER, *" -- ".join(lists).split()], world_size, timeout=6000)
    return runs


def assert_equal(run: Path, reference: Path) -> None:
    """Losses and gradient norms to 1e-5, one by one; weights and averages as vectors."""
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
    references = train([(task, "zero0", "none", 1) for task in GROUPS], shards, tmp_path, 1)
    of_task = {task: run for run, task in references.items()}
    for run, task in train(SLICE, shards, tmp_path, 2, "deterministic=true").items():
        assert_equal(run, of_task[task])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_no_way_of_saving_memory_changes_anything(ranks: int, shards: Path, tmp_path: Path) -> None:
    """8 stages × 3 policies × 2 accumulations, on each of 3 numbers of ranks."""
    ways = itertools.product(("surrogate",), STAGES, ("none", "full", "selective"), (1, 4))
    (reference,) = train([("surrogate", "zero0", "none", 1)], shards, tmp_path / "reference", 1)
    for run in train(list(ways), shards, tmp_path, ranks):
        assert_equal(run, reference)
