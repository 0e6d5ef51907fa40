"""Trainings that are killed, stopped, moved and starved of disk: nothing lost, nothing guessed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import Ranks
from reading import assert_same_bits, metrics
from words import overrides

from lola_ds.train.checkpoint.export import find_checkpoint
from lola_ds.train.stop import EXIT_STOPPED

WORKER = str(Path(__file__).with_name("windows_worker.py"))
pytestmark = pytest.mark.ranks


def start(run: Path, data: Path, world_size: int, *more: str) -> Ranks:
    """Starts or resumes a small training."""
    return Ranks([WORKER, *overrides("surrogate", data, run, *more)], world_size)


def train(run: Path, data: Path, world_size: int, *more: str) -> None:
    """Trains to the end."""
    with start(run, data, world_size, *more) as ranks:
        ranks.finish()


def at_stage(stage: int | str, drive: Path) -> list[str]:
    """The words that choose a stage, and the folder of one that offloads to a drive."""
    words = [f"deepspeed=zero{stage}"]
    return [*words, f"deepspeed.nvme_path={drive}"] if stage == "3_nvme" else words


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("train/loss") if path.is_file() else 0


def windows(run: Path, world_size: int) -> dict[tuple[int, int], set[tuple[int, ...]]]:
    """(step, rank) -> the sets of windows that it read, in all attempts; one, if all is well."""
    seen: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for rank in range(world_size):
        for line in (run / f"windows_{rank}.jsonl").read_text().splitlines():
            if line.endswith("]]"):  # a kill may cut a line
                step, some = json.loads(line)
                seen.setdefault((step, rank), set()).add(tuple(some))
    return seen


def staged(run: Path) -> list[str]:
    """What lies in the folder of the save under way."""
    for folder in (run / "checkpoints").glob(".step_*.partial"):
        try:
            return [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            break
    return []


def kill_once(run: Path, ranks: Ranks, moment: str, rng: random.Random) -> str:
    """Kills a random rank at a random instant of a kind; returns the kind that it was."""
    begin, delay = lines(run), rng.random()
    steps = rng.randint(1, 9)
    conditions: dict[str, Callable[[], bool]] = {
        "step": lambda: lines(run) >= begin + steps,
        "save": lambda: lines(run) > begin and any("rank" in name for name in staged(run)),
        "publish": lambda: lines(run) > begin and "state.json" in staged(run),
    }
    ranks.wait_until(conditions[moment])
    time.sleep({"step": 0.02, "save": 0.003, "publish": 0.0}[moment] * delay)
    ranks.signal(rng.randrange(2), signal.SIGKILL)
    codes = ranks.wait(5)
    assert -signal.SIGKILL in codes
    names = staged(run)
    # All ranks have written before the first writes the state; the rename is what is left.
    return "publish" if "state.json" in names else "save" if names else "step"


@pytest.mark.parametrize(
    ("stage", "kills", "epochs"),
    [
        ("2", 3, 8),
        pytest.param("2", 30, 60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param("3_nvme", 9, 20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_killed_training_ends_with_the_same_bits(
    stage: str, kills: int, epochs: int, shards: Path, tmp_path: Path
) -> None:
    """SIGKILL of random ranks during steps, saves, and between save and rename."""
    whole, run, drive = tmp_path / "whole", tmp_path / "killed", tmp_path / "drive"
    drive.mkdir()
    more = [*at_stage(stage, drive), f"train.epochs={epochs}"]
    more += ["ema.power_law=[0.1]", "ema.keep_every=2"]
    train(whole, shards, 2, *more)
    rng, found = random.Random(kills), Counter[str]()
    for kill in range(kills):
        moment = ("step", "save", "publish")[kill % 3]
        with start(run, shards, 2, *more) as ranks:
            found[kill_once(run, ranks, moment, rng)] += 1
    train(run, shards, 2, *more)
    print(f"killed: {dict(found)}")
    assert_same_bits(run, whole)
    expected, seen = windows(whole, 2), windows(run, 2)
    assert seen == expected
    assert all(len(sets) == 1 for sets in seen.values())
    assert sorted({step for step, _ in seen}) == list(range(5 * epochs))
    assert not list((run / "checkpoints").glob(".*"))
    assert not list(drive.iterdir())
    kept = [sorted(p.name for p in (r / "averages").iterdir()) for r in (run, whole)]
    assert kept[0] == kept[1] != []
    if kills >= 30:
        assert min(found[moment] for moment in ("step", "save", "publish")) >= 1, found


@pytest.mark.parametrize(
    "chain",
    [
        [(2, 3), (1, 1)],
        pytest.param([(4, 3), (2, 1), (3, 0), (1, 2)], marks=pytest.mark.slow),
        pytest.param([(2, 3), (2, 1), (2, 0)], marks=pytest.mark.slow),
        pytest.param([(2, "3_nvme"), (2, 1), (1, "3_nvme")], marks=pytest.mark.slow),
    ],
)
def test_training_moves_to_other_ranks_and_stages(
    chain: list[tuple[int, int | str]], shards: Path, tmp_path: Path
) -> None:
    """Asked to stop in the middle of an epoch, it goes on at another stage and world size."""
    whole, run = tmp_path / "whole", tmp_path / "moved"
    fixed = ["train.batch_size=12", "train.epoch_size=60", "checkpoint.every=2"]
    train(whole, shards, 1, *fixed)
    *before, (world_size, stage) = chain
    for i, (ranks_before, stage_before) in enumerate(before):
        reached = lines(run) + 3
        words = [*fixed, *at_stage(stage_before, tmp_path)]
        with start(run, shards, ranks_before, *words) as ranks:
            ranks.wait_until(lambda reached=reached: lines(run) >= reached)
            ranks.signal(ranks_before - 1, (signal.SIGTERM, signal.SIGUSR1)[i % 2])
            assert ranks.wait(600) == [EXIT_STOPPED] * ranks_before
        assert find_checkpoint(run).state["step"] == lines(run) < 20
    train(run, shards, world_size, *fixed, *at_stage(stage, tmp_path))
    assert metrics(run, "train/loss") == pytest.approx(metrics(whole, "train/loss"), rel=1e-5)


def test_full_disk_stops_all_ranks_and_loses_nothing(shards: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "full"
    more = ["deepspeed=zero1", "train.epochs=3"]
    train(whole, shards, 2, *more)
    with start(run, shards, 2, *more, "full=1:7") as ranks:
        assert ranks.wait(600) == [2, 2]
        outputs = ranks.outputs
    for said in outputs:
        assert "checkpoints: the checkpoint could not be written (rank 1: [Errno 27]" in said
    assert find_checkpoint(run).state["step"] == 5
    assert not list((run / "checkpoints").glob(".*"))
    train(run, shards, 2, *more)
    assert_same_bits(run, whole)
