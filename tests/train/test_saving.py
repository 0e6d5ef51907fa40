"""Ranks killed while they save: those that come after all find the same complete step."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from ranks import Ranks

from lola_ds.train.checkpoint.format import CheckpointReader, list_checkpoints

WORKER = str(Path(__file__).with_name("saving_worker.py"))
pytestmark = pytest.mark.ranks


def found(folder: Path) -> set[int]:
    """The steps that the ranks found; forgets them."""
    paths = [folder / f"found_{rank}" for rank in range(2)]
    steps = {int(path.read_text()) for path in paths}
    for path in (*paths, folder / "saving"):
        path.unlink()
    return steps


def unfinished(folder: Path) -> list[Path]:
    """What lies in the folder under other names than those of checkpoints."""
    return list((folder / "checkpoints").glob(".step_*"))


def complete(folder: Path) -> list[int]:
    """The steps of the checkpoints that verify."""
    steps = []
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        reader = CheckpointReader(checkpoint)
        reader.verify()
        steps.append(reader.state["step"])
    return steps


@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        (3, 2),
        *(
            pytest.param(stage, 50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
            for stage in range(4)
        ),
    ],
)
def test_ranks_agree_after_every_kill_during_a_save(stage: int, kills: int, tmp_path: Path) -> None:
    rng, last, moments = random.Random(stage), 0, Counter[str]()
    words = [WORKER, str(tmp_path), str(stage)]
    while moments["in a save"] < kills:
        with Ranks(words, 2) as ranks:
            ranks.wait_until((tmp_path / "saving").exists)
            time.sleep(rng.uniform(0, 0.1))
            ranks.wait_until(lambda: bool(unfinished(tmp_path)))
            time.sleep(rng.uniform(0, 0.01))
            ranks.signal(rng.randrange(2), signal.SIGKILL)
            assert -signal.SIGKILL in ranks.wait(5)
        moments["in a save" if unfinished(tmp_path) else "between saves"] += 1
        (step,) = found(tmp_path)  # all ranks found the same,
        assert step == last  # the newest that was there
        last = max(complete(tmp_path), default=0)
    (tmp_path / "enough").touch()
    with Ranks(words, 2) as ranks:
        ranks.finish()
    assert found(tmp_path) == {last}
    assert not unfinished(tmp_path)
    print(f"stage {stage}: {dict(moments)}, {last} steps saved")
