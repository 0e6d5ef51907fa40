"""The peak memory of evaluations, each in its own process, is within the budget."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

WORKER = Path(__file__).with_name("memory_worker.py")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)


def taken(folder: Path, *words: float | str) -> float:
    """The peak memory of an evaluation in GB, without the program and the weights.

    Arguments:
        folder: of data and results.
        words: fields, side, steps, members, memory, kind; see the worker.
    """
    command = [sys.executable, *map(str, (WORKER, folder, *words))]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"took (\d+) MB", done.stdout)
    assert found is not None
    return int(found[1]) / 1e3


def test_a_rollout_takes_no_more_memory_than_asked_for(tmp_path: Path) -> None:
    """States are decoded a few at a time; the next test has no tight budget."""
    assert taken(tmp_path, 1, 256, 4, 8, 0.15, "latent") < 0.15


@pytest.mark.slow
def test_without_a_budget_it_takes_more(tmp_path: Path) -> None:
    assert taken(tmp_path, 1, 256, 4, 8, 8.0, "latent") > 0.15


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_does_not_grow_with_the_length_of_a_rollout(tmp_path: Path) -> None:
    """Sixteen members of 101 states of a field on 512² cells would be 1.7 GB by themselves."""
    assert taken(tmp_path, 1, 512, 101, 16, 0.6, "latent") < 0.6
