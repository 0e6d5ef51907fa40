"""Edges of cells and colour scales of the picture of a trajectory."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from lola_ds.evaluate.overview import _colours, axis_edges, plot_trajectory


def test_edges_of_a_uniform_grid():
    grid = {"start": 0.125, "step": 0.25, "size": 4}
    assert axis_edges(grid, 4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert axis_edges({}, 3).tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert axis_edges({"start": 2.0, "step": 4.0}, 1).tolist() == [0, 4]


def test_edges_of_an_uneven_grid_lie_between_its_centres():
    centres = np.array([0.0, 1.0, 4.0])
    edges = axis_edges({"values": centres.tolist()}, 3)
    assert edges.tolist() == [-0.5, 0.5, 2.5, 5.5]


def test_colour_scales():
    signed, cmap = _colours(np.linspace(-3, 1, 1001))
    assert signed.vmin == pytest.approx(-3, rel=0.01)
    assert signed.vmax == -signed.vmin
    assert cmap == "RdBu_r"
    assert isinstance(_colours(np.logspace(-3, 1, 1001))[0], LogNorm)
    plain, cmap = _colours(np.linspace(1, 2, 1001))
    assert not isinstance(plain, LogNorm)
    assert cmap == "viridis"
    assert _colours(np.full(3, np.nan))[0].vmax == 1
    flat, _ = _colours(np.full(5, 2.0))
    assert flat.vmax > flat.vmin


def test_one_dimension_and_nan_are_drawn(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 3, 16))
    x[0, 1] = np.nan
    edges = {"x": np.linspace(0, 1, 17)}
    plot_trajectory(x, ["a", "b_x"], ["0", "1", "2"], edges, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
