"""Results on disk: resuming, merging, refusing other or damaged results."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from wave_emulator import WaveEmulator, write_split

from lola_ds.data import ShardDataset
from lola_ds.evaluate import Evaluation, Forecast, Resources, evaluate, read_results
from lola_ds.evaluate.store import ResultStore
from lola_ds.evaluate.tables import COLUMNS, Unit

FORECAST = Forecast(steps=2, members=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("shards") / "waves" / "test"
    folder.parent.mkdir()
    write_split(folder)
    return ShardDataset(folder)


def run(
    dataset: ShardDataset, out: Path, emulator: WaveEmulator, *chosen: int, **options: object
) -> Evaluation:
    forecast = options.pop("forecast", FORECAST)
    options.setdefault("draw", False)
    found = evaluate(emulator, dataset, out, forecast, chosen or None, progress=False, **options)
    assert found is not None
    return found


def rows(unit: Unit, value: float = 1.0) -> pd.DataFrame:
    row = (unit.setting, "emulator", *unit[1:], "density", 1, 0.1, "vrmse", -1, value)
    return pd.DataFrame([row], columns=list(COLUMNS))


def digest(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_rerun_computes_nothing(dataset: ShardDataset, tmp_path: Path) -> None:
    first = WaveEmulator(0.3)
    whole = run(dataset, tmp_path, first)
    assert len(first.generated) == 3 + 1  # and the warm-up
    again = WaveEmulator(0.3)
    found = run(dataset, tmp_path, again)
    assert again.generated == []
    pd.testing.assert_frame_equal(found.table, whole.table)


def test_more_trajectories_and_starts_are_added(dataset: ShardDataset, tmp_path: Path) -> None:
    whole = run(dataset, tmp_path / "whole", WaveEmulator(0.3))
    run(dataset, tmp_path / "parts", WaveEmulator(0.3), 2)
    emulator = WaveEmulator(0.3)
    found = run(dataset, tmp_path / "parts", emulator, 0, 2, 1)
    pd.testing.assert_frame_equal(found.table, whole.table)
    assert digest(tmp_path / "parts", "metrics.csv") == digest(tmp_path / "whole", "metrics.csv")
    assert not (tmp_path / "parts" / "parts").exists()
    later = Forecast(steps=2, members=2, start=3)
    found = run(dataset, tmp_path / "parts", WaveEmulator(0.3), forecast=later)
    assert found.summary["settings"]["start"] == [0, 3]
    assert len(found.table) == 2 * len(whole.table)


def test_killed_half_way_and_run_again(dataset: ShardDataset, tmp_path: Path) -> None:
    whole = run(dataset, tmp_path / "whole", WaveEmulator(0.3))
    killed = WaveEmulator(0.3)
    stream = killed.stream

    def die(*args: Any, **options: Any) -> object:
        if len(killed.generated) == 3:
            raise KeyboardInterrupt
        return stream(*args, **options)

    killed.stream = die
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(dataset, out, killed, resources=Resources(batch=2))
    assert len(list((out / "parts").iterdir())) == 2
    (out / "parts" / ".ab16_trajectory000002_start000000.99.parquet").write_bytes(b"half")
    emulator = WaveEmulator(0.3)
    found = run(dataset, out, emulator)
    assert len(emulator.generated) == 1 + 1
    pd.testing.assert_frame_equal(found.table, whole.table)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in out.iterdir()} == names


def test_other_settings_join_the_table(dataset: ShardDataset, tmp_path: Path) -> None:
    first = run(dataset, tmp_path, WaveEmulator(0.3))
    others = [
        Forecast(steps=2, members=3),
        Forecast(steps=2, members=2, seed=1),
        Forecast(steps=2, members=2, sampler="ddim", sampling_steps=4),
    ]
    for forecast in others:
        run(dataset, tmp_path, WaveEmulator(0.3), forecast=forecast)
    table = read_results(tmp_path)
    assert set(table["setting"]) == {
        "ab16-members2-steps2",
        "ab16-members3-steps2",
        "ab16-members2-steps2-seed1",
        "ddim4-members2-steps2",
    }
    own = table[table["setting"] == "ab16-members2-steps2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, first.table)
    again = WaveEmulator(0.3)
    for forecast in others:
        run(dataset, tmp_path, again, forecast=forecast)
    assert again.generated == []


def test_results_of_another_model_are_refused(dataset: ShardDataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, WaveEmulator(0.3), 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match=r"waves with noise 0\.3 there, waves with noise"):
        run(dataset, tmp_path, WaveEmulator(0.5))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_commands_at_the_same_time_do_not_lose_rows(tmp_path: Path) -> None:
    """Eight threads with a setting each, in one folder: some merge while others write."""

    def work(i: int) -> None:
        store = ResultStore(tmp_path, {"task": "test"})
        for k in range(6):
            unit = Unit(f"seed{i}", k, 0)
            store.add(unit, rows(unit, float(i)), {"states": 1})
            if (i + k) % 3 == 0:
                store.merge()
        store.merge()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    table = read_results(tmp_path)
    assert len(table) == 48
    assert (table["setting"].str[4:].astype(int) == table["value"]).all()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.parquet", "metrics.csv", ".lock"}


def test_files_that_another_process_is_writing_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command merges while another one is writing a unit."""
    stores = [ResultStore(tmp_path, {"task": "test"}) for _ in range(2)]
    slow, quick = Unit("slow", 0, 0), Unit("quick", 0, 0)
    stores[0].add(quick, rows(quick), {"states": 1})
    writing, write = threading.Event(), pq.write_table

    def write_slowly(data: Any, where: Path, **options: Any) -> None:
        write(data, where, **options)
        if "slow" in where.name:
            writing.set()
            time.sleep(0.3)

    monkeypatch.setattr(pq, "write_table", write_slowly)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(stores[1].add, slow, rows(slow), {"states": 1})
        assert writing.wait(10)
        stores[0].merge()
        adding.result()
    stores[1].merge()
    assert set(read_results(tmp_path)["setting"]) == {"quick", "slow"}


@pytest.mark.parametrize("kind", ["garbage", "half", "foreign"])
def test_units_that_are_no_good_are_refused_and_kept(
    dataset: ShardDataset, tmp_path: Path, kind: str
) -> None:
    """A unit of another model, or a damaged one, is among those of an interrupted command."""
    unit = Unit("ab16-members2-steps2", 0, 0)
    ResultStore(tmp_path, {"model": "another"}).add(unit, rows(unit), {"states": 1})
    part = next((tmp_path / "parts").iterdir())
    content, messages = part.read_bytes(), {"foreign": "holds results of another evaluation"}
    part.write_bytes({"garbage": b"no table", "half": content[:300], "foreign": content}[kind])
    before, emulator = part.read_bytes(), WaveEmulator()
    with pytest.raises(ValueError, match=f"{part.name} {messages.get(kind, 'is damaged')}"):
        run(dataset, tmp_path, emulator)
    assert (part.read_bytes(), emulator.generated) == (before, [])


def test_a_damaged_climatology_is_made_again(dataset: ShardDataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, WaveEmulator(), 0, train=dataset)
    path = tmp_path / "climatology.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    run(dataset, tmp_path, WaveEmulator(), 0, 1, train=dataset)
    assert path.read_bytes() == whole


def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    """Any flipped bit is refused, unless the rows that are read are the ones written."""
    store = ResultStore(tmp_path, {"task": "test"})
    for i in range(4):
        store.add(Unit("ab16", i, 0), rows(Unit("ab16", i, 0), float(i)), {"states": 1})
    table, _ = store.merge()
    path = tmp_path / "metrics.parquet"
    whole, refused = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_results(tmp_path)
        except ValueError:
            refused += 1
        else:
            pd.testing.assert_frame_equal(found, table)
    assert refused > 20
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            ResultStore(tmp_path, {"task": "test"})


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    rows(Unit("ab16", 0, 0)).to_parquet(tmp_path / "metrics.parquet")
    with pytest.raises(ValueError, match="was not written by this version"):
        ResultStore(tmp_path, {})
    (tmp_path / "metrics.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="lola-ds eval out="):
        read_results(tmp_path)
