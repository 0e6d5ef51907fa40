"""Two real processes (gloo, accelerate) share an evaluation and give the numbers of one."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from ranks import ROOT, run_ranks
from wave_emulator import write_split

from lola_ds.evaluate import Processes, join_processes, read_results

WORKER = str(Path(__file__).with_name("eval_worker.py"))
PATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{Path(__file__).parent}"


@pytest.mark.ranks
@pytest.mark.xdist_group("ranks")
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    (tmp_path / "waves").mkdir()
    shards = tmp_path / "waves" / "test"
    write_split(shards)
    for count in (1, 2):
        out = tmp_path / f"results{count}"
        outputs = run_ranks([WORKER, str(shards), str(out)], count, env={"PYTHONPATH": PATH})
        for rank, text in enumerate(outputs):  # six forecasts, and a warm-up each
            expected = f"process {rank}: {6 // count + 1} forecasts, table: {rank == 0}"
            assert expected in text
    one, two = (read_results(tmp_path / f"results{count}") for count in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    names = [sorted(p.name for p in (tmp_path / f"results{n}").iterdir()) for n in (1, 2)]
    assert names[0] == names[1]
    assert "climatology.npz" in names[0]


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
