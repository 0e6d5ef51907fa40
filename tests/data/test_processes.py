"""Exactness with real processes: killed without warning, resumed at other world sizes."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import make_shards
from ranks import Ranks

WORKER = str(Path(__file__).with_name("reading_rank.py"))
pytestmark = pytest.mark.ranks


@pytest.fixture
def folder(tmp_path):
    data = np.random.default_rng(0).standard_normal((9, 40, 3, 8, 8))
    return str(make_shards(tmp_path / "toy" / "train", data, shard_bytes=100_000).folder)


def rows(out, steps, world):
    """{step: {window: (hash, weight)}} as the ranks noted it."""
    found = {}
    for step in steps:
        parts = [json.loads((out / f"{step}-{rank}").read_text()) for rank in range(world)]
        real = [row for part in parts for row in part if row[0] >= 0]
        assert len({len(part) for part in parts}) == 1
        found[step] = {window: (digest, weight) for window, digest, weight in real}
        assert len(found[step]) == len(real)
    return found


def start(folder, out, world, *numbers):
    out.mkdir(exist_ok=True)
    return Ranks([WORKER, folder, str(out), *map(str, numbers)], world)


def read(folder, out, first, last, world, workers, quarantine=0):
    with start(folder, out, world, first, last, workers, quarantine, 0) as ranks:
        ranks.finish()
    return rows(out, range(first, last), world)


def kill(folder, out, step, world, workers):
    """SIGKILLs all ranks once `step` is noted by all."""
    with start(folder, out, world, 0, step + 1, workers, 0, 1) as ranks:
        ranks.wait_until(lambda: all((out / f"{step}-{rank}").exists() for rank in range(world)))
        assert ranks.wait(0) == [-signal.SIGKILL] * world
    return rows(out, range(step), world)


def test_killed_and_resumed_at_another_world_size(folder, tmp_path):
    expected = read(folder, tmp_path / "whole", 0, 20, 1, 0)
    seen = kill(folder, tmp_path / "out", 13, 2, 1)
    assert seen | read(folder, tmp_path / "out", 13, 20, 3, 2) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_killed_at_batch_37_of_four_ranks(folder, tmp_path, world, workers):
    expected = read(folder, tmp_path / "whole", 0, 60, 1, 0)
    seen = kill(folder, tmp_path / "out", 37, 4, workers)
    assert seen | read(folder, tmp_path / "out", 37, 60, world, workers) == expected


@pytest.mark.slow
def test_three_chained_changes(folder, tmp_path):
    expected = read(folder, tmp_path / "whole", 0, 60, 1, 0)
    seen = kill(folder, tmp_path / "out", 20, 4, 1)
    for first, last, world in ((20, 31, 3), (31, 44, 8), (44, 60, 2)):
        seen |= read(folder, tmp_path / "out", first, last, world, 1)
    assert seen == expected
    epochs = [w for step in sorted(seen) for w in seen[step]]
    assert np.bincount(epochs[:324]).tolist() == [1] * 324  # nothing twice, nothing missing


def test_quarantine_is_shared_by_ranks(tmp_path):
    data = np.random.default_rng(0).standard_normal((9, 40, 3, 8, 8))
    index = make_shards(tmp_path / "toy" / "train", data)
    path = index.folder / index.shards[0]
    whole = bytearray(path.read_bytes())
    whole[int(index.places(50)[1])] ^= 1
    path.write_bytes(whole)
    steps = 2 * -(-324 // 24)  # two epochs
    found = read(str(index.folder), tmp_path / "two", 0, steps, 2, 1, quarantine=1)
    state = [json.loads((tmp_path / "two" / f"end-{rank}").read_text()) for rank in range(2)]
    assert state[0] == state[1]
    assert state[0]["quarantine"] == [36 + 6, 36 + 8, 36 + 10]  # trajectory 1, frame 10
    for epoch in range(2):
        steps_of = range(epoch * steps // 2, (epoch + 1) * steps // 2)
        windows = sorted(window for step in steps_of for window in found[step])
        assert windows == [w for w in range(324) if w not in state[0]["quarantine"]]
    assert all(  # from the second epoch on, the others' weights make up for it
        weight == pytest.approx(24 / len(found[step]))
        for step in range(steps // 2, steps)
        for _, weight in found[step].values()
    )
    alone = read(str(index.folder), tmp_path / "one", 0, steps, 1, 0, quarantine=1)
    assert alone == found
