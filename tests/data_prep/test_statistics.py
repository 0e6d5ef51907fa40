"""Streaming statistics against NumPy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from well_files import write_split

from data_prep.statistics import (
    BITS,
    FieldStatistics,
    Histogram,
    _bins,
    _edge,
    gather_statistics,
)
from data_prep.well import WellFile
from lola_ds.fields import TRANSFORMS

QUANTILE_ERROR = 2.0 ** (9 - BITS)  # relative
LEVELS = (0.001, 0.05, 0.25, 0.5, 0.75, 0.99)


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(size=50_000),
        "far from zero": 1e4 + rng.normal(size=50_000),
        "log-normal over decades": np.exp(8 * rng.normal(size=50_000)),
        "negative": -np.exp(rng.normal(size=50_000)),
        "tiny": 1e-42 * rng.normal(size=50_000),
        "two values": rng.choice([0.0, 3.0], size=50_000),
    }


@pytest.mark.parametrize("name", samples())
def test_quantiles_within_the_stated_error(name):
    x = samples()[name].astype(np.float32)
    ours = FieldStatistics.of(x.reshape(5, 1, -1)).summary(LEVELS)
    for level in LEVELS:
        exact = float(np.quantile(x, level, method="inverted_cdf"))
        assert ours[f"{level:g}"] == [pytest.approx(exact, rel=1.01 * QUANTILE_ERROR, abs=1.2e-38)]


def test_bins_are_ordered_and_edges_invert_them():
    x = np.sort(np.random.default_rng(0).normal(size=1000).astype(np.float32) ** 5)
    x = np.concatenate(([-np.inf, np.finfo(np.float32).min], x, [np.finfo(np.float32).max])).astype(
        np.float32
    )
    bins = _bins(x)
    assert (np.diff(bins) >= 0).all()
    assert bins.max() < 2**BITS
    for value, number in zip(x[1:].tolist(), bins[1:].tolist()):
        assert _edge(number) <= value
        assert value < _edge(number + 1) or not np.isfinite(_edge(number + 1))
    assert _edge(int(_bins(np.zeros(1, np.float32))[0])) == 0


def test_merging_in_any_order_gives_the_whole():
    x = np.random.default_rng(0).normal(size=(9, 2, 100))
    x[:, 0] += 1e3
    x = x.astype(np.float32)
    whole = FieldStatistics.of(x)
    merged = FieldStatistics.empty(2)
    for part in (x[5:], x[:2], x[2:5]):
        merged = merged.merge(FieldStatistics.of(part))
    assert np.array_equal(merged.histogram.counts, whole.histogram.counts)
    ours, theirs = merged.summary(LEVELS), whole.summary(LEVELS)
    assert ours == {key: pytest.approx(values, rel=1e-12) for key, values in theirs.items()}
    exact = x.astype(np.float64)
    assert ours["mean"] == pytest.approx(exact.mean(axis=(0, 2)), rel=1e-12)
    assert ours["std"] == pytest.approx(exact.std(axis=(0, 2)), rel=1e-10)
    assert ours["min"] == x.min(axis=(0, 2)).tolist()
    assert ours["max"] == x.max(axis=(0, 2)).tolist()
    assert ours["count"] == [900, 900]


def test_zeros_stay_zeros():
    assert FieldStatistics.of(np.zeros((2, 1, 5), np.float32)).summary([0.5])["0.5"] == [0.0]
    x = np.array([-2, 0, 0, 0, 3], np.float32).reshape(1, 1, 5)
    assert Histogram.of(x).quantile(0.5) == [0.0]


def test_nothing_has_no_quantiles():
    assert np.isnan(Histogram.empty(2).quantile(0.5)).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_files_after_the_transform(workers, tmp_path, monkeypatch):
    """All values of all files, in small blocks; workers change nothing."""
    monkeypatch.setattr("data_prep.statistics.BLOCK_BYTES", 4000)
    paths = write_split(tmp_path / "well", files=3)
    transform = {0: "arcsinh", 3: "arcsinh"}
    fields = [f"field {c}" for c in range(8)]
    table = gather_statistics(
        paths, fields, transform, workers=workers, show_progress=False
    ).summary(LEVELS)
    x = []
    for path in paths:
        with WellFile(path) as file:
            x += [file.read(i, slice(None)) for i in range(file.trajectories)]
    values = np.stack(x, axis=1).reshape(7 * 6, 8, -1)
    for channel, name in transform.items():
        forward, _ = TRANSFORMS[name]
        values[:, channel] = forward(torch.from_numpy(values[:, channel])).numpy()
    values = values.swapaxes(0, 1).reshape(8, -1).astype(np.float64)
    assert table["mean"] == pytest.approx(values.mean(axis=1), abs=1e-12)
    assert table["std"] == pytest.approx(values.std(axis=1), rel=1e-12)
    assert table["min"] == values.min(axis=1).tolist()
    assert table["max"] == values.max(axis=1).tolist()
    median = np.quantile(values, 0.5, axis=1, method="inverted_cdf")
    assert table["0.5"] == pytest.approx(median, rel=1.01 * QUANTILE_ERROR)


def test_values_that_are_not_finite(tmp_path):
    """The logarithm of negative values is refused with its place, or left out and counted."""
    paths = write_split(tmp_path / "well", files=1)
    fields = [f"field {c}" for c in range(8)]
    arguments = {"transform": {2: "log"}, "workers": 1, "show_progress": False}
    with pytest.raises(ValueError, match=r"trajectory 0, step 0, field field 2 .* after log"):
        gather_statistics(paths, fields, **arguments)
    statistics = gather_statistics(paths, fields, **arguments, allow_nan=True)
    assert 0 < statistics.nonfinite < statistics.moments.count[0]
    assert statistics.moments.count[2] == statistics.moments.count[0] - statistics.nonfinite
    assert statistics.histogram.counts[2].sum() == statistics.moments.count[2]


@pytest.mark.parametrize("transform", [{0: "log3"}, {8: "log1p"}])
def test_unknown_transforms_are_refused(transform, tmp_path):
    with pytest.raises(ValueError, match="expected a channel below 8"):
        gather_statistics([tmp_path / "none"], ["x"] * 8, transform)
