"""Results on disk: resuming, merging, refusing what is foreign or damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from wave_emulator import WaveEmulator, write_split

from lola_ds.data import ShardDataset
from lola_ds.evaluate import Evaluation, Forecast, evaluate, read_results
from lola_ds.evaluate.store import ResultStore, Unit
from lola_ds.evaluate.tables import COLUMNS

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
    row = ("emulator", *unit, "density", 1, 0.1, "vrmse", -1, value)
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
    generate = killed.generate

    def die(*args: object, **options: object) -> object:
        if len(killed.generated) == 3:
            raise KeyboardInterrupt
        return generate(*args, **options)

    killed.generate = die
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(dataset, out, killed)
    assert len(list((out / "parts").iterdir())) == 2
    (out / "parts" / ".trajectory000002_start000000.99.parquet").write_bytes(b"half")
    emulator = WaveEmulator(0.3)
    found = run(dataset, out, emulator)
    assert len(emulator.generated) == 1 + 1
    pd.testing.assert_frame_equal(found.table, whole.table)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in out.iterdir()} == names


def test_pictures_that_are_missing_are_drawn_again(dataset: ShardDataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, WaveEmulator(), draw=True)
    (tmp_path / "snapshots_density.png").unlink()
    emulator = WaveEmulator()
    run(dataset, tmp_path, emulator, draw=True)
    assert (tmp_path / "snapshots_density.png").is_file()
    assert len(emulator.generated) == 1 + 1


@pytest.mark.parametrize(
    ("emulator", "forecast", "message"),
    [
        (WaveEmulator(0.5), FORECAST, "model: waves with noise 0.3 there, waves with noise 0.5 h"),
        (WaveEmulator(0.3), Forecast(steps=2, members=3), "members: 2 there, 3 here"),
        (WaveEmulator(0.3), Forecast(steps=2, members=2, seed=1), "seed: 0 there, 1 here"),
    ],
)
def test_results_of_another_evaluation_are_refused(
    dataset: ShardDataset,
    tmp_path: Path,
    emulator: WaveEmulator,
    forecast: Forecast,
    message: str,
) -> None:
    run(dataset, tmp_path, WaveEmulator(0.3), 0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        run(dataset, tmp_path, emulator, forecast=forecast)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    """Any flipped bit is refused, unless the rows that are read are the ones written."""
    store = ResultStore(tmp_path, {"task": "test"})
    for i in range(4):
        store.add(Unit(i, 0), rows(Unit(i, 0), float(i)), {"states": 1})
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
    rows(Unit(0, 0)).to_parquet(tmp_path / "metrics.parquet")
    with pytest.raises(ValueError, match="was not written by this version"):
        ResultStore(tmp_path, {})
    (tmp_path / "metrics.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="lola-ds eval out="):
        read_results(tmp_path)
