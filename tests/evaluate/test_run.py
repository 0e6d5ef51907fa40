"""Evaluations of travelling waves: known errors, files, refused settings."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from wave_emulator import (
    FRAMES,
    TRAJECTORIES,
    WaveCodec,
    WaveEmulator,
    travelling_waves,
    write_split,
)

from lola_ds.data import ShardDataset
from lola_ds.evaluate import (
    Evaluation,
    Forecast,
    Resources,
    evaluate,
    evaluate_autoencoder,
    read_results,
    spread_trajectories,
)
from lola_ds.evaluate.resources import MemoryTerms
from lola_ds.evaluate.selection import forecast_seed, frame_times
from lola_ds.evaluate.store import LOCK
from lola_ds.evaluate.tables import COLUMNS, Unit, correlation_times
from lola_ds.metrics import rank_histogram, vrmse

FIELDS = ["density", "momentum_x", "momentum_y"]


def values(table: pd.DataFrame, method: str, metric: str) -> np.ndarray:
    """(trajectory, field, lead) array of one method's metric."""
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    assert (rows["bin"] == -1).all()
    shape = [rows[name].nunique() for name in ("trajectory", "field", "lead")]
    return rows["value"].to_numpy().reshape(shape)


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "waves" / "test"
    folder.parent.mkdir()
    write_split(folder)
    return folder


@pytest.fixture
def dataset(split: Path) -> ShardDataset:
    return ShardDataset(split)


@pytest.fixture(scope="module")
def ensemble(split: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """Four members that are the truth plus noise 0.3, evaluated from frame 1."""
    out = tmp_path_factory.mktemp("results") / "a" / "b"
    forecast, dataset = Forecast(steps=4, members=4, start=1), ShardDataset(split)
    found = evaluate(WaveEmulator(0.3), dataset, out, forecast, train=dataset, progress=False)
    assert found is not None
    return found, out


def quick(dataset: ShardDataset, out: Path, *args: object, **options: object) -> pd.DataFrame:
    """The table of an evaluation."""
    found = evaluate(args[0], dataset, out, *args[1:], draw=False, progress=False, **options)
    assert found is not None
    return found.table


def test_an_ensemble_of_known_noise(ensemble: tuple[Evaluation, Path]) -> None:
    """Members are the truth plus noise s: VRMSE s, of the mean s/√M, spread s."""
    table = ensemble[0].table
    assert values(table, "emulator", "vrmse") == pytest.approx(0.3, rel=0.25)
    assert values(table, "ensemble", "vrmse") == pytest.approx(0.15, rel=0.25)
    assert values(table, "ensemble", "spread") == pytest.approx(0.3, rel=0.1)
    assert values(table, "ensemble", "crps").min() > 0
    assert values(table, "emulator", "correlation_high").mean() > 0.9


def test_baselines_are_the_last_known_state_and_the_reconstruction(
    ensemble: tuple[Evaluation, Path],
) -> None:
    table = ensemble[0].table
    lead_3 = table[(table["lead"] == 3) & (table["method"] == "persistence")]
    assert lead_3["time"].to_numpy() == pytest.approx(3 * 2 * 0.015)
    x = torch.from_numpy(travelling_waves(2)).transpose(0, 1)
    expected = vrmse(x[:, 1 + 3 * 2], x[:, 1], 2).numpy()
    assert values(table, "persistence", "vrmse")[2, :, 2] == pytest.approx(expected)
    power = (x[:, 7] ** 2).mean(dim=(1, 2)).sqrt()
    expected = (0.1 * power / x[:, 7].std(dim=(1, 2), correction=0)).numpy()
    found = values(table, "autoencoder", "vrmse")[2, :, 2]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_summary_follows_from_the_table(
    ensemble: tuple[Evaluation, Path],
) -> None:
    result, out = ensemble
    summary = json.loads((out / "ab16-members4-steps4" / "summary.json").read_text())
    assert summary == result.summary
    errors = {m: values(result.table, m, "vrmse") for m in ("emulator", "ensemble", "persistence")}
    for method, array in errors.items():
        found = summary["vrmse"][method]
        assert found["by_lead"] == pytest.approx(array.mean(axis=(0, 1)))
        assert list(found["by_field"].values()) == pytest.approx(array.mean(axis=(0, 2)))
        assert found["mean"] == pytest.approx(array.mean())
    ratio = errors["emulator"].mean(axis=(0, 1)) / errors["persistence"].mean(axis=(0, 1))
    found = summary["ratio_to_persistence"]["emulator"]
    assert found["by_lead"] == pytest.approx(ratio)
    assert found["mean"] == pytest.approx(ratio.mean())
    assert found["worst"] == pytest.approx(ratio.max())
    spread, skill = (values(result.table, "ensemble", name) for name in ("spread", "skill"))
    expected = math.sqrt(5 / 4) * np.sqrt((spread**2).mean(axis=0) / (skill**2).mean(axis=0))
    assert summary["ensemble"]["spread_skill"] == pytest.approx(expected.mean(axis=0))
    assert summary["ensemble"]["mean_over_member"] == pytest.approx(0.5, rel=0.1)
    assert summary["times"] == pytest.approx([0.03, 0.06, 0.09, 0.12])
    assert (summary["task"], summary["settings"]["stride"]) == ("diffusion", 2)
    assert "emulator, ensemble mean" in result.text
    assert "3 trajectories" in result.text


def test_files_are_what_they_claim(ensemble: tuple[Evaluation, Path]) -> None:
    result, out = ensemble
    folder = out / "ab16-members4-steps4"
    assert files_below(out) == {*result.files, out / LOCK}  # and no temporary file is left
    shared = {"metrics.csv", "metrics.parquet", "climatology.npz", LOCK, folder.name}
    assert {path.name for path in out.iterdir()} == shared
    expected = {"spectra.csv", "summary.json", "animation.gif", "ranks.png"}
    expected |= {f"{n}.png" for n in ("vrmse", "vrmse_by_field", "spectra", "spread_skill")}
    expected |= {f"snapshots_{field}.png" for field in FIELDS}
    assert expected <= {path.name for path in folder.iterdir()}
    table = pd.read_csv(out / "metrics.csv")
    assert tuple(table.columns) == COLUMNS
    pd.testing.assert_frame_equal(table, result.table)
    pd.testing.assert_frame_equal(read_results(out), result.table)
    assert set(table["field"]) == {*FIELDS, "all"}
    assert set(table["trajectory"]) == set(range(TRAJECTORIES))
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
    with Image.open(folder / "animation.gif") as image:
        assert image.n_frames == 5  # the known state and four leads
        assert image.info["loop"] == 0


def test_pictures_that_are_missing_are_drawn_again(
    ensemble: tuple[Evaluation, Path], dataset: ShardDataset, tmp_path: Path
) -> None:
    """This repeats one forecast; the others are in the table."""
    shutil.copytree(ensemble[1], tmp_path, dirs_exist_ok=True)
    picture = tmp_path / "ab16-members4-steps4" / "snapshots_density.png"
    before = picture.read_bytes()
    picture.unlink()
    emulator = WaveEmulator(0.3)
    forecast = Forecast(steps=4, members=4, start=1)
    evaluate(emulator, dataset, tmp_path, forecast, train=dataset, progress=False)
    assert picture.read_bytes() == before
    assert len(emulator.generated) == 1 + 1  # and the warm-up


def test_the_spectra_are_the_mean_over_trajectories(dataset: ShardDataset, tmp_path: Path) -> None:
    forecast = Forecast(2, 1)
    result = evaluate(WaveEmulator(), dataset, tmp_path, forecast, draw=False, progress=False)
    assert result is not None
    spectra = result.spectra[result.spectra["lead"] == 1]
    truth = spectra[spectra["method"] == "truth"]
    total = truth.groupby("field")["power"].sum()
    x = np.stack([travelling_waves(i)[2] for i in range(TRAJECTORIES)])
    assert total[FIELDS].to_numpy() == pytest.approx((x**2).mean(axis=(0, 2, 3)), rel=1e-6)
    emulated = spectra[spectra["method"] == "emulator"]
    assert emulated["power"].to_numpy() == pytest.approx(truth["power"].to_numpy(), rel=1e-6)


def test_the_climatology_is_the_mean_of_the_training_split(
    ensemble: tuple[Evaluation, Path],
) -> None:
    table = ensemble[0].table
    states = np.concatenate([travelling_waves(i) for i in range(TRAJECTORIES)]).astype(np.float64)
    mean = torch.from_numpy(states.mean(axis=0)).float()
    x = torch.from_numpy(travelling_waves(1)).transpose(0, 1)
    expected = vrmse(x[:, 1 + 2 * 2], mean, 2).numpy()
    assert values(table, "climatology", "vrmse")[1, :, 1] == pytest.approx(expected, rel=1e-5)


def test_scores_against_the_autoencoded_truth(ensemble: tuple[Evaluation, Path]) -> None:
    """The codec keeps 0.9 of a state, so the error relative to the autoencoded truth is 1/9."""
    table = ensemble[0].table
    against = values(table, "emulator", "vrmse_autoencoded")
    assert (against > values(table, "emulator", "vrmse")).all()
    assert not (table[table["method"] != "emulator"]["metric"] == "vrmse_autoencoded").any()


def test_ensembles_have_ranks_and_coverage(ensemble: tuple[Evaluation, Path]) -> None:
    """The truth is the centre of its members, so it is in the middle more often than not."""
    result, _ = ensemble
    rows = result.table[result.table["metric"] == "rank"]
    assert set(rows["bin"]) == set(range(5))
    totals = rows.groupby(["trajectory", "field", "lead"])["value"].sum()
    assert totals.to_numpy() == pytest.approx(1)
    coverage = values(result.table, "ensemble", "coverage")
    middle = rows[rows["bin"].between(1, 3)].groupby(["trajectory", "field", "lead"], sort=False)
    assert coverage.ravel() == pytest.approx(middle["value"].sum().to_numpy())
    assert result.summary["ensemble"]["nominal_coverage"] == pytest.approx(3 / 5)
    noise = torch.randn(5, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    expected = rank_histogram(torch.zeros(1, 200, 200), noise[1:], 2)[0]
    frequency = rows.groupby("bin")["value"].mean().to_numpy()
    assert frequency == pytest.approx(expected.numpy(), abs=0.03)


def test_correlation_times_follow_from_the_table(ensemble: tuple[Evaluation, Path]) -> None:
    result, _ = ensemble
    times = correlation_times(result.table, threshold=0.8)
    assert times["emulator"] == pytest.approx(4 * 2 * 0.015)  # ρ = 1/√1.09 throughout
    assert times["persistence"] == pytest.approx(0.2 * 2 * 0.015, rel=0.3)  # noise, moved
    assert result.summary["correlation_time"] == pytest.approx(times)


def test_timing_counts_generation_and_decoding_apart(
    ensemble: tuple[Evaluation, Path],
) -> None:
    timing = ensemble[0].summary["timing"]
    assert timing["states"] == TRAJECTORIES * 4 * 4
    assert timing["generation_seconds_per_state"] > 0
    assert timing["decoding_seconds_per_state"] > 0
    assert timing["device"] == "CPU"


def test_a_surrogate_of_pixels_that_blows_up(dataset: ShardDataset, tmp_path: Path) -> None:
    """One member, no autoencoder; one trajectory of NaN makes the average infinite, not smaller."""
    emulator = WaveEmulator(generative=False, pixels=True)
    stream = emulator.stream

    def blow_up(
        x0: torch.Tensor, label: torch.Tensor, *args: Any, **options: Any
    ) -> Iterator[torch.Tensor]:
        for z in stream(x0, label, *args, **options):
            z[label[:, 0] < 1.5] = torch.nan
            yield z

    emulator.stream = blow_up
    result = evaluate(emulator, dataset, tmp_path, Forecast(steps=2), progress=False)
    assert result is not None
    assert set(result.table["method"]) == {"truth", "persistence", "emulator"}
    assert (result.summary["task"], result.summary["members"]) == ("surrogate", 1)
    assert "ensemble" not in result.summary
    assert not list(tmp_path.rglob("spread_skill.png"))
    summary = json.loads((tmp_path / "steps2" / "summary.json").read_text())
    assert np.isinf(values(result.table, "emulator", "vrmse")[0]).all()
    assert values(result.table, "emulator", "vrmse")[1:].max() == 0
    assert summary["vrmse"]["emulator"]["by_lead"] == [None, None]
    assert summary["ratio_to_persistence"]["emulator"]["worst"] is None
    assert summary["vrmse"]["persistence"]["mean"] > 0


def test_each_forecast_has_its_noise_whichever_are_evaluated(
    dataset: ShardDataset, tmp_path: Path
) -> None:
    forecast = Forecast(steps=2, members=2, seed=5)
    emulator = WaveEmulator(0.3)
    everything = quick(dataset, tmp_path / "a", emulator, forecast)
    alone = quick(dataset, tmp_path / "b", emulator, forecast, [2])
    expected = everything[everything["trajectory"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)
    other = quick(dataset, tmp_path / "c", emulator, Forecast(2, 2, seed=6), [2])
    assert not np.allclose(other["value"], alone["value"])
    units = [Unit("any", i, start) for i in range(8) for start in range(8)]
    seeds = {
        forecast_seed(seed, unit, *more)
        for seed in range(4)
        for unit in units
        for more in ((), (1,), (2,))
    }
    assert len(seeds) == 64 * 4 * 3


def test_the_numbers_do_not_depend_on_the_memory(dataset: ShardDataset, tmp_path: Path) -> None:
    forecast = Forecast(steps=5, members=3)
    emulators = WaveEmulator(0.3), WaveEmulator(0.3)
    together = quick(dataset, tmp_path / "a", emulators[0], forecast)
    assert emulators[0].together[1:] == [3]  # after the warm-up
    small, state = Resources(batch=2, memory=0.00125), 4 * 3 * 16 * 16
    terms = MemoryTerms.estimate(3, state, 1, window=4 * state, advance=1)
    assert small.batch_sizes(3, terms, 0.4).leads == 2
    apart = quick(dataset, tmp_path / "b", emulators[1], forecast, resources=small)
    assert emulators[1].together[1:] == [1, 1, 1]
    pd.testing.assert_frame_equal(apart, together)
    with pytest.raises(ValueError, match="give memory="):
        quick(dataset, tmp_path / "c", WaveEmulator(), forecast, resources=Resources(memory=1e-4))
    assert not (tmp_path / "c").exists()


def test_a_context_of_several_states_counts_leads_from_the_last(
    dataset: ShardDataset, tmp_path: Path
) -> None:
    forecast = Forecast(steps=2, members=1, start=1, context=3)
    table = quick(dataset, tmp_path, WaveEmulator(), forecast)
    assert values(table, "emulator", "vrmse").max() == 0
    x = torch.from_numpy(travelling_waves(0)).transpose(0, 1)
    expected = vrmse(x[:, 1 + 4 * 2], x[:, 1 + 2 * 2], 2)
    assert values(table, "persistence", "vrmse")[0, :, 1] == pytest.approx(expected.numpy())


def test_several_starts_are_several_forecasts(dataset: ShardDataset, tmp_path: Path) -> None:
    table = quick(dataset, tmp_path, WaveEmulator(0.3), Forecast(2, 2, start=(0, 3)), [1])
    assert table.groupby("start", sort=False).size().index.tolist() == [0, 3]
    alone = quick(dataset, tmp_path / "b", WaveEmulator(0.3), Forecast(2, 2, start=3), [1])
    pd.testing.assert_frame_equal(table[table["start"] == 3].reset_index(drop=True), alone)


@pytest.mark.parametrize(
    ("forecast", "message"),
    [
        (Forecast(steps=7), "choose steps=6 or less"),
        (Forecast(steps=4, start=6), "choose steps=3 or less"),
        (Forecast(steps=1, start=12), "an earlier start="),
        (Forecast(steps=4, context=3, start=2), "choose steps=3 or less"),
        (Forecast(steps=0), "steps=0"),
        (Forecast(members=0), "members=0"),
        (Forecast(start=-1), "start=-1"),
        (Forecast(sampling_steps=0), "sampling_steps=0"),
        (Forecast(sampler="rk4"), "sampler='rk4' is unknown"),
        (Forecast(context=4), "context=4 must be between 1 and 3"),
        (Forecast(overlap=0), "overlap=0 must be between 1 and 3"),
    ],
)
def test_impossible_forecasts_are_refused_before_anything_is_written(
    dataset: ShardDataset, tmp_path: Path, forecast: Forecast, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(WaveEmulator(), dataset, tmp_path / "r", forecast, progress=False)
    assert not (tmp_path / "r").exists()


def test_the_longest_forecast_offered_is_possible(dataset: ShardDataset, tmp_path: Path) -> None:
    table = quick(dataset, tmp_path, WaveEmulator(), Forecast(6, 1), [0])
    assert table["lead"].max() == 6


def test_trajectories_are_chosen(dataset: ShardDataset, tmp_path: Path) -> None:
    assert spread_trajectories(dataset, 2) == [0, 2]
    assert spread_trajectories(dataset, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="trajectories=4"):
        spread_trajectories(dataset, 4)
    with pytest.raises(ValueError, match=r"trajectories=\[3\]"):
        quick(dataset, tmp_path, WaveEmulator(), Forecast(), [1, 3])


def test_data_of_other_fields_is_refused(dataset: ShardDataset, tmp_path: Path) -> None:
    emulator = WaveEmulator()
    emulator.codec.standardize.mean = torch.zeros(5)
    with pytest.raises(ValueError, match="3 channels, the model was made for 5"):
        quick(dataset, tmp_path, emulator)


def test_an_autoencoder_alone(dataset: ShardDataset, tmp_path: Path) -> None:
    result = evaluate_autoencoder(WaveCodec(), dataset, tmp_path, 4, progress=False)
    assert result is not None
    frames = [0, 4, 8, 12]
    assert sorted(result.table["lead"].unique()) == frames
    assert result.summary["times"] == pytest.approx([0.015 * k for k in frames])
    assert values(result.table, "autoencoder", "nrmse") == pytest.approx(0.1, rel=1e-4)
    assert values(result.table, "autoencoder", "spectrum_mid") == pytest.approx(0.19, rel=1e-4)
    assert values(result.table, "autoencoder", "correlation_low") == pytest.approx(1, rel=1e-6)
    assert result.summary["vrmse"]["autoencoder"]["mean"] == pytest.approx(0.1, rel=0.1)
    assert files_below(tmp_path) == {*result.files, tmp_path / LOCK}
    assert "mean over fields" in result.text


def test_frames_that_do_not_exist_are_refused(dataset: ShardDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose steps between 1 and 13"):
        evaluate_autoencoder(WaveCodec(), dataset, tmp_path, FRAMES + 1, progress=False)
    with pytest.raises(ValueError, match="start between 0 and 5"):
        evaluate_autoencoder(WaveCodec(), dataset, tmp_path, 8, 6, progress=False)


def test_times_come_from_the_grid(dataset: ShardDataset) -> None:
    assert frame_times(dataset, 1, slice(2, 8, 3)) == pytest.approx([0.03, 0.075])
    dataset.meta = lambda i: {"time": {"values": [t**2 for t in range(FRAMES)]}}
    assert frame_times(dataset, 0, slice(1, 4)).tolist() == [1, 4, 9]
