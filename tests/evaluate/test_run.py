"""Whole evaluations on waves that travel: known errors, files, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

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
    evaluate,
    evaluate_autoencoder,
    score_autoencoder,
    score_emulator,
    spread_trajectories,
)
from lola_ds.evaluate.run import frame_times, trajectory_seed
from lola_ds.evaluate.tables import COLUMNS
from lola_ds.metrics import vrmse

FIELDS = ["density", "momentum_x", "momentum_y"]


def values(table: pd.DataFrame, method: str, metric: str) -> np.ndarray:
    """(trajectory, field, lead) array of one method's metric."""
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    shape = [rows[name].nunique() for name in ("trajectory", "field", "lead")]
    return rows["value"].to_numpy().reshape(shape)


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
def ensemble(
    split: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, list[Path], Path]:
    """Four members that are the truth plus noise 0.3, evaluated from frame 1."""
    out = tmp_path_factory.mktemp("results") / "a" / "b"
    forecast = Forecast(steps=4, members=4, start=1)
    found = evaluate(WaveEmulator(0.3), ShardDataset(split), out, forecast, progress=False)
    return *found, out


def test_an_ensemble_of_known_noise(ensemble: tuple[Evaluation, list[Path], Path]) -> None:
    """Members are the truth plus noise s: VRMSE s, of the mean s/√M, spread s."""
    table = ensemble[0].table
    assert values(table, "emulator", "vrmse") == pytest.approx(0.3, rel=0.25)
    assert values(table, "ensemble", "vrmse") == pytest.approx(0.15, rel=0.25)
    assert values(table, "ensemble", "spread") == pytest.approx(0.3, rel=0.1)
    assert values(table, "ensemble", "crps").min() > 0
    assert values(table, "emulator", "correlation_high").mean() > 0.9


def test_baselines_are_the_last_known_state_and_the_reconstruction(
    ensemble: tuple[Evaluation, list[Path], Path],
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
    ensemble: tuple[Evaluation, list[Path], Path],
) -> None:
    result, _, out = ensemble
    summary = json.loads((out / "summary.json").read_text())
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


def test_files_are_what_they_claim(ensemble: tuple[Evaluation, list[Path], Path]) -> None:
    result, files, out = ensemble
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in files}  # and no temporary file is left
    expected = {"metrics.csv", "spectra.csv", "summary.json", "animation.gif"}
    expected |= {f"{n}.png" for n in ("vrmse", "vrmse_by_field", "spectra", "spread_skill")}
    expected |= {f"snapshots_{field}.png" for field in FIELDS}
    assert expected <= names
    table = pd.read_csv(out / "metrics.csv")
    assert tuple(table.columns) == COLUMNS
    pd.testing.assert_frame_equal(table, result.table)
    assert set(table["field"]) == set(FIELDS)
    assert set(table["trajectory"]) == set(range(TRAJECTORIES))
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
    with Image.open(out / "animation.gif") as image:
        assert image.n_frames == 5  # the known state and four leads
        assert image.info["loop"] == 0


def test_the_spectra_are_the_mean_over_trajectories(dataset: ShardDataset) -> None:
    result = score_emulator(WaveEmulator(), dataset, Forecast(2, 1), progress=False)
    spectra = result.spectra[result.spectra["lead"] == 1]
    truth = spectra[spectra["method"] == "truth"]
    total = truth.groupby("field")["power"].sum()
    x = np.stack([travelling_waves(i)[2] for i in range(TRAJECTORIES)])
    assert total[FIELDS].to_numpy() == pytest.approx((x**2).mean(axis=(0, 2, 3)), rel=1e-6)
    emulated = spectra[spectra["method"] == "emulator"]
    assert emulated["power"].to_numpy() == pytest.approx(truth["power"].to_numpy(), rel=1e-6)


def test_a_surrogate_of_pixels_that_blows_up(dataset: ShardDataset, tmp_path: Path) -> None:
    """One member, no autoencoder; one trajectory of NaN makes the average infinite, not smaller."""
    emulator = WaveEmulator(generative=False, pixels=True)
    rollout = emulator.rollout
    emulator.rollout = lambda x0, label, *a, **k: (
        rollout(x0, label, *a, **k) * (torch.nan if label[0] < 1.5 else 1.0)
    )
    result, _ = evaluate(emulator, dataset, tmp_path, Forecast(steps=2), progress=False)
    assert set(result.table["method"]) == {"truth", "persistence", "emulator"}
    assert (result.summary["task"], result.summary["members"]) == ("surrogate", 1)
    assert "ensemble" not in result.summary
    assert not (tmp_path / "spread_skill.png").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert np.isinf(values(result.table, "emulator", "vrmse")[0]).all()
    assert values(result.table, "emulator", "vrmse")[1:].max() == 0
    assert summary["vrmse"]["emulator"]["by_lead"] == [None, None]
    assert summary["ratio_to_persistence"]["emulator"]["worst"] is None
    assert summary["vrmse"]["persistence"]["mean"] > 0


def test_each_trajectory_has_its_noise_whichever_are_evaluated(dataset: ShardDataset) -> None:
    forecast = Forecast(steps=2, members=2, seed=5)
    emulator = WaveEmulator(0.3)
    everything = score_emulator(emulator, dataset, forecast, progress=False).table
    alone = score_emulator(emulator, dataset, forecast, [2], progress=False).table
    expected = everything[everything["trajectory"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)
    other = score_emulator(emulator, dataset, Forecast(2, 2, seed=6), [2], progress=False)
    assert not np.allclose(other.table["value"], alone["value"])
    assert len({trajectory_seed(s, i) for s in range(20) for i in range(20)}) == 400


def test_a_context_of_several_states_counts_leads_from_the_last(dataset: ShardDataset) -> None:
    forecast = Forecast(steps=2, members=1, start=1, context=3)
    table = score_emulator(WaveEmulator(), dataset, forecast, progress=False).table
    assert values(table, "emulator", "vrmse").max() == 0
    x = torch.from_numpy(travelling_waves(0)).transpose(0, 1)
    expected = vrmse(x[:, 1 + 4 * 2], x[:, 1 + 2 * 2], 2)
    assert values(table, "persistence", "vrmse")[0, :, 1] == pytest.approx(expected.numpy())


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


def test_the_longest_forecast_offered_is_possible(dataset: ShardDataset) -> None:
    result = score_emulator(WaveEmulator(), dataset, Forecast(6, 1), [0], progress=False)
    assert result.table["lead"].max() == 6


def test_trajectories_are_chosen(dataset: ShardDataset) -> None:
    assert spread_trajectories(dataset, 2) == [0, 2]
    assert spread_trajectories(dataset, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="trajectories=4"):
        spread_trajectories(dataset, 4)
    with pytest.raises(ValueError, match=r"trajectories=\[3\]"):
        score_emulator(WaveEmulator(), dataset, Forecast(), [1, 3], progress=False)


def test_data_of_other_fields_is_refused(dataset: ShardDataset) -> None:
    emulator = WaveEmulator()
    emulator.codec.standardize.mean = torch.zeros(5)
    with pytest.raises(ValueError, match="3 channels, the model was made for 5"):
        score_emulator(emulator, dataset, Forecast(), progress=False)


def test_an_autoencoder_alone(dataset: ShardDataset, tmp_path: Path) -> None:
    result, files = evaluate_autoencoder(WaveCodec(), dataset, tmp_path, 4, progress=False)
    frames = [0, 4, 8, 12]
    assert sorted(result.table["lead"].unique()) == frames
    assert result.summary["times"] == pytest.approx([0.015 * k for k in frames])
    assert values(result.table, "autoencoder", "nrmse") == pytest.approx(0.1, rel=1e-4)
    assert values(result.table, "autoencoder", "spectrum_mid") == pytest.approx(0.19, rel=1e-4)
    assert values(result.table, "autoencoder", "correlation_low") == pytest.approx(1, rel=1e-6)
    assert result.summary["vrmse"]["autoencoder"]["mean"] == pytest.approx(0.1, rel=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    assert "mean over fields" in result.text


def test_frames_that_do_not_exist_are_refused(dataset: ShardDataset) -> None:
    with pytest.raises(ValueError, match="choose steps between 1 and 13"):
        score_autoencoder(WaveCodec(), dataset, steps=FRAMES + 1, progress=False)
    with pytest.raises(ValueError, match="start between 0 and 5"):
        score_autoencoder(WaveCodec(), dataset, steps=8, start=6, progress=False)


def test_times_come_from_the_grid(dataset: ShardDataset) -> None:
    assert frame_times(dataset, 1, slice(2, 8, 3)) == pytest.approx([0.03, 0.075])
    dataset.meta = lambda i: {"time": {"values": [t**2 for t in range(FRAMES)]}}
    assert frame_times(dataset, 0, slice(1, 4)).tolist() == [1, 4, 9]
