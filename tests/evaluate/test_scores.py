"""Scores of forecasts against the metrics they consist of, and their tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lola_ds import metrics
from lola_ds.evaluate.plots.style import method_styles
from lola_ds.evaluate.scores import Scores, score_ensemble, score_states, score_truth
from lola_ds.evaluate.tables import (
    COLUMNS,
    Unit,
    ensemble_scores,
    even_indices,
    lead_times,
    mean_over_fields,
    score_rows,
    write_json,
)


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth (C, T, *S) and an ensemble (M, C, T, *S) on a 3-d grid."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, 3, 8, 6, 6, generator=generator)
    return u, u + 0.5 * torch.randn(4, *u.shape, generator=generator)


def test_states_are_scored_one_member_at_a_time(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    u, v = case
    scores = score_states(u, v)
    expected = torch.stack([metrics.vrmse(u, v[m], 3) for m in range(4)]).mean(dim=0)
    torch.testing.assert_close(scores.values["vrmse"], expected)
    assert all(value.shape == (2, 3) for value in scores.values.values())
    assert scores.joint["sliced_wasserstein"].shape == (3,)
    power = torch.stack([metrics.power_spectrum(v[m], 3) for m in range(4)])
    torch.testing.assert_close(scores.binned["power"], power.mean(dim=0))
    truth = metrics.power_spectrum(u, 3)
    error = torch.stack([metrics.spectrum_error(truth, p, (8, 6, 6)) for p in power])
    torch.testing.assert_close(scores.values["spectrum_mid"], error.mean(dim=0)[..., 1])


def test_the_ensemble_is_scored_by_its_mean(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    u, v = case
    scores = score_ensemble(u, v).values
    torch.testing.assert_close(scores["vrmse"], metrics.vrmse(u, v.mean(dim=0), 3))
    torch.testing.assert_close(scores["skill"], scores["rmse"])
    torch.testing.assert_close(scores["spread"], metrics.spread(v, 3))
    torch.testing.assert_close(scores["crps"], metrics.fair_crps(u, v, 3))
    torch.testing.assert_close(scores["energy"], metrics.energy_score(u, v, 3))
    torch.testing.assert_close(scores["spread_skill"], metrics.spread_skill_ratio(u, v, 3))


def test_the_truth_has_a_deviation(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    u, _ = case
    expected = u.double().flatten(2).var(dim=2, correction=0).sqrt()
    torch.testing.assert_close(score_truth(u).values["std"], expected)


def test_a_forecast_that_is_not_finite_is_infinitely_wrong(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    u, v = case
    v = v.clone()
    v[1, 0, 2, 0, 0, 0] = torch.nan
    for scores in (score_states(u, v).values, score_ensemble(u, v).values):
        for name in ("rmse", "nrmse", "vrmse", "spectrum_low"):
            assert scores[name][0, 2] == torch.inf
            assert scores[name][:, :2].isfinite().all()
        assert scores["correlation_low"].isfinite().all()
    assert score_ensemble(u, v).values["crps"][0, 2] == torch.inf


def test_cells_of_different_sizes_count_by_their_volume() -> None:
    """The error is 1 beyond y = 1/2, in half of the volume and more than half of the cells."""
    y = (1 - np.cos(np.pi * (np.arange(32) + 0.5) / 64)) / 2  # denser towards 0
    y = np.where(y > 0, y, 0)
    grid = metrics.Grid((8, 32), [None, y])
    u = torch.zeros(1, 1, 8, 32)
    v = (torch.from_numpy(y) > y.max() / 2).float().expand(1, 1, 1, 8, 32)
    found = score_states(u, v, grid).values["rmse"].item() ** 2
    assert found == pytest.approx(0.5, abs=0.05)
    assert score_states(u, v).values["rmse"].item() ** 2 < 0.4
    assert score_truth(v[0], grid).values["std"].item() == pytest.approx(0.5, abs=0.01)


def make_table(spread: list[float], skill: list[float]) -> pd.DataFrame:
    """Spread and skill of one field and lead on several trajectories; the truth's std is 2."""
    parts = []
    for i, (a, b) in enumerate(zip(spread, skill)):
        where = {"unit": Unit("a", i, 0), "fields": ["p"], "leads": [1], "times": [0.1]}
        scores = {"spread": torch.tensor([[a]]), "skill": torch.tensor([[b]])}
        parts.append(score_rows(Scores(scores), method="ensemble", **where))
        std = Scores({"std": torch.tensor([[2.0]])})
        parts.append(score_rows(std, method="truth", **where))
    return pd.concat(parts, ignore_index=True)


def test_spread_and_skill_are_averaged_as_squares() -> None:
    table = make_table(spread=[1.0, 7.0], skill=[5.0, 5.0])
    row = ensemble_scores(table, members=4).iloc[0]
    assert row["spread"] == pytest.approx(5.0)  # √((1 + 49)/2)
    assert row["spread_skill"] == pytest.approx((5 / 4) ** 0.5)
    assert row["relative_skill"] == pytest.approx(2.5)


def test_rows_keep_fields_leads_and_metrics_apart() -> None:
    values = {
        "rmse": torch.arange(6.0).reshape(2, 3),
        "vrmse": 10 + torch.arange(6.0).reshape(2, 3),
    }
    rows = score_rows(
        Scores(values), Unit("a", 4, 2), "emulator", ["a", "b"], [1, 2, 3], [0.5, 1.0, 1.5]
    )
    assert tuple(rows.columns) == COLUMNS
    found = rows[(rows["metric"] == "vrmse") & (rows["field"] == "b") & (rows["lead"] == 2)]
    assert found[["value", "time", "trajectory", "start"]].to_numpy().tolist() == [[14, 1.0, 4, 2]]
    assert mean_over_fields(rows, "rmse")["value"].tolist() == [1.5, 2.5, 3.5]


def test_clocks_that_differ_by_round_off_are_one_lead() -> None:
    tables = []
    for i, step in enumerate((0.1, 0.1 + 1e-12)):
        scores = Scores({"vrmse": torch.ones(1, 2)})
        tables.append(
            score_rows(scores, Unit("a", i, 0), "emulator", ["a"], [1, 2], [step, 2 * step])
        )
    times = lead_times(pd.concat(tables))
    assert times.index.tolist() == [1, 2]
    assert times.tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(8, 3, [0, 4, 7]), (2, 5, [0, 1]), (1, 1, [0])]
)
def test_even_indices(count: int, most: int, expected: list[int]) -> None:
    assert even_indices(count, most) == expected
    for n in range(1, 40):
        assert len(even_indices(40, n)) == n


def test_json_without_a_finite_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, tmp_path / "summary.json")
    assert not list(tmp_path.iterdir())


def test_a_member_is_called_so_beside_its_ensemble() -> None:
    assert method_styles(["emulator"])["emulator"].label == "emulator"
    assert method_styles(["ensemble", "emulator"])["emulator"].label == "emulator, one member"
    colours = [
        style.color for style in method_styles(["truth", "persistence", "autoencoder"]).values()
    ]
    assert len(np.unique(colours)) == 3
