"""What a run folder holds, for comparing runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lola_ds.train.checkpoint.export import find_checkpoint


def metrics(run: Path, name: str) -> list[float]:
    """The values of one metric, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and their averages in the newest checkpoint."""
    reader = find_checkpoint(run)
    kinds = ("weight", *reader.averages)
    return {f"{k}/{n}": t for k in kinds for n, t in reader.tensors(k).items()}


def assert_same_bits(run: Path, expected: Path) -> None:
    """Two runs lost the same and ended with the same weights, bit for bit."""
    assert metrics(run, "train/loss") == metrics(expected, "train/loss")
    found, wanted = tensors(run), tensors(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
