"""The benchmarks of kernels and steps run, and write what they promise, on the smallest case."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(module: str, *words: str) -> list[dict[str, str]]:
    """The rows that a benchmark writes."""
    out = words[0].partition("=")[2]
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(out) as file:
        return list(csv.DictReader(file))


def test_kernels(tmp_path: Path) -> None:
    rows = run("kernels", f"out={tmp_path / 'k.csv'}", "rounds=1", "size=tiny")
    names = [row["kernel"] for row in rows]
    assert len(set(names)) == 7
    assert len(rows) == 13  # the averages have no backward
    for row in rows:
        assert float(row["triton_ms"]) > 0
        assert float(row["floor_ms"]) > 0
        assert row["commit"]
        assert row["device"]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_step(tmp_path: Path, compiled: bool) -> None:
    words = ["cases=demo", "batch=2", "rounds=1", f"compiled={str(compiled).lower()}"]
    rows = run("step", f"out={tmp_path / 's.csv'}", *words)
    sides = [(row["what"], row["side"]) for row in rows]
    assert sides == [(w, s) for w in ("train step", "sampling") for s in ("published", "ours")]
    for published, ours in (rows[:2], rows[2:]):
        assert published["speedup"] == "1.00"
        assert float(ours["speedup"]) > 0
        assert float(ours["difference"]) < 2e-2
        assert published["attention"] == ours["attention"]
        assert "attention" in ours["attention"]
