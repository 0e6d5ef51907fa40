"""With several processes, other batches or interruptions, the numbers are those of one process."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from eval_worker import FIELDS, UNITS, run
from helpers import make_shards
from ranks import Ranks, run_ranks

from lola_ds.evaluate import Processes, join_processes, read_results

WORKER = str(Path(__file__).with_name("eval_worker.py"))
pytestmark = pytest.mark.xdist_group("ranks")  # one worker makes the results once


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trajectories of noise, 12 frames of 3 fields on 32 × 32 cells."""
    folder = tmp_path_factory.mktemp("shards") / "noise" / "test"
    make_shards(folder, np.random.default_rng(0).standard_normal((3, 12, FIELDS, 32, 32)))
    return folder


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process, one forecast after the other."""
    out = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other processes have
    assert len(run(shards, out, Processes())) == UNITS
    torch.set_num_threads(threads)
    return out


def digests(folder: Path) -> dict[str, str]:
    """The files that hold only numbers, without timing."""
    names = ("metrics.csv", "climatology.npz")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def units(path: Path) -> dict[str, dict[str, float]]:
    """The units in a file of results, and the seconds that each took."""
    return json.loads(pq.read_schema(path).metadata[b"lola_ds"])["units"]


@pytest.mark.ranks
def test_killed_half_way_two_processes_finish_the_rest(
    shards: Path, alone: Path, tmp_path: Path
) -> None:
    """One process is killed after a few forecasts. Two others do not repeat these, and the table is
    byte for byte that of one process that was not interrupted."""
    parts = tmp_path / "parts"
    with Ranks([WORKER, str(shards), str(tmp_path)], 1) as ranks:
        ranks.wait_until(lambda: len(list(parts.glob("[!.]*"))) >= 3, seconds=200)
        assert ranks.wait(0) == [-signal.SIGKILL]
    assert not (tmp_path / "metrics.parquet").exists()
    kept = {name: took for path in parts.glob("[!.]*") for name, took in units(path).items()}
    assert 3 <= len(kept) < UNITS
    outputs = run_ranks([WORKER, str(shards), str(tmp_path)], 2)
    made = [int(text.split(" forecasts")[0].split()[-1]) for text in outputs]
    assert sum(made) == UNITS - len(kept)
    assert max(made) - min(made) <= 1
    merged = units(tmp_path / "metrics.parquet")
    assert len(merged) == UNITS
    assert {name: merged[name] for name in kept} == kept
    assert digests(tmp_path) == digests(alone)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_changes_nothing_but_rounding(
    shards: Path, alone: Path, tmp_path: Path, batch: int
) -> None:
    """Members one by one; three forecasts side by side."""
    run(shards, tmp_path, Processes(), batch)
    found, expected = read_results(tmp_path), read_results(alone)
    names = [name for name in expected if name != "value"]
    pd.testing.assert_frame_equal(found[names], expected[names])
    ranks = expected["metric"] == "rank"  # counts cells, which rounding moves one at a time
    for rows, tolerance in ((~ranks, 1e-4), (ranks, 2 / 32**2)):
        np.testing.assert_allclose(
            found["value"][rows], expected["value"][rows], rtol=1e-4, atol=tolerance
        )


def test_shares_are_disjoint_and_complete() -> None:
    items = list(range(7))
    shares = [Processes(index, 3).share(items) for index in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes, device = join_processes("cpu")
    assert (processes.first, processes.count, device) == (True, 1, torch.device("cpu"))
    processes.wait()
    processes.leave()
    with pytest.raises(ValueError, match="device=tpu is unknown"):
        join_processes("tpu")
