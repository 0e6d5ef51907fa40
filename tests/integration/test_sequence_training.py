"""Sequence parallelism in trainings: losses and weights of a single rank, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from reading import metrics, tensors
from words import overrides

WORKER = str(Path(__file__).with_name("train_worker.py"))
pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def train(runs: dict[Path, list[str]], shards: Path, world_size: int) -> None:
    """Trains a diffusion model with four heads once for each run, in one start of the ranks."""
    heads = "denoiser.attention_heads=4"
    lists = (overrides("diffusion", shards, run, heads, *more) for run, more in runs.items())
    words = " -- ".join(" ".join(words) for words in lists)
    run_ranks([WORKER, *words.split()], world_size, timeout=1000)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("world_size", "sizes"), [(2, (2,)), (4, (2, 4))])
def test_groups_equal_one_rank(
    world_size: int, sizes: tuple[int, ...], shards: Path, tmp_path: Path
) -> None:
    """20 steps, float32, alone and beside other groups, with recomputation and accumulation."""
    whole = tmp_path / "whole"
    train({whole: ["deepspeed=zero0"]}, shards, 1)
    runs = {
        tmp_path / f"zero{stage}_{size}": [f"deepspeed=zero{stage}", f"sequence_parallel={size}"]
        for stage in range(4)
        for size in sizes
    }
    for policy in ("full", "selective"):
        more = [f"sequence_parallel={sizes[0]}", f"denoiser.checkpointing={policy}"]
        runs[tmp_path / policy] = ["deepspeed=zero2", "train.accumulation=2", *more]
    train(runs, shards, world_size)
    expected = tensors(whole)
    for run in runs:
        assert len(metrics(run, "train/loss")) == 20
        for name in ("train/loss", "train/grad_norm", "valid/loss"):
            assert metrics(run, name) == pytest.approx(metrics(whole, name), rel=1e-5), (run, name)
        for name, tensor in tensors(run).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
