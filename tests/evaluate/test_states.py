"""Edges of cells, colour scales and orientation of pictures of states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm
from matplotlib.image import PcolorImage
from PIL import Image

from lola_ds.evaluate.plots.recorder import PictureRecorder
from lola_ds.evaluate.plots.states import (
    axis_edges,
    draw_state,
    field_scale,
    plot_trajectory,
    truth_scale,
)
from lola_ds.evaluate.plots.style import styled_figure


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
    signed, cmap = field_scale(np.linspace(-3, 1, 1001))
    assert signed.vmin == pytest.approx(-3, rel=0.01)
    assert signed.vmax == -signed.vmin
    assert cmap == "RdBu_r"
    assert isinstance(field_scale(np.logspace(-3, 1, 1001))[0], LogNorm)
    plain, cmap = field_scale(np.linspace(1, 2, 1001))
    assert not isinstance(plain, LogNorm)
    assert cmap == "viridis"
    assert field_scale(np.full(3, np.nan))[0].vmax == 1
    flat, _ = field_scale(np.full(5, 2.0))
    assert flat.vmax > flat.vmin


def test_one_dimension_and_nan_are_drawn(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 3, 16))
    x[0, 1] = np.nan
    edges = {"x": np.linspace(0, 1, 17)}
    plot_trajectory(x, ["a", "b_x"], ["0", "1", "2"], edges, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_uneven_cells_are_drawn_at_their_size():
    x = np.arange(6.0).reshape(2, 3)
    edges = np.array([0.0, 1.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.0])
    with styled_figure(2, 2) as fig:
        image = draw_state(fig.subplots(), x, truth_scale(x), edges)
    assert isinstance(image, PcolorImage)
    assert tuple(image.get_extent()) == (0, 5, 0, 2)


@pytest.mark.parametrize("shape", [(32,), (32, 16), (32, 16, 4)])
def test_the_first_axis_is_drawn_to_the_right(tmp_path, shape):
    ramp = torch.linspace(0, 1, 32).view(-1, *[1] * (len(shape) - 1)).expand(1, 4, *shape)
    recorder = PictureRecorder(["a"], ["x", "y", "z"][: len(shape)], list("tuvw"))
    recorder.add(0, ramp, ramp[None])
    recorder.draw(tmp_path, "forecast")
    with Image.open(tmp_path / "snapshots_a.png") as image:
        pixels = np.asarray(image.convert("RGB"), dtype=float)
    pixels = pixels[:, : 3 * pixels.shape[1] // 4]  # without the colour bars
    high, low = (
        np.argwhere(np.abs(pixels - colour).sum(axis=-1) < 40).mean(axis=0)
        for colour in ([253, 231, 37], [68, 1, 84])  # the ends of viridis
    )
    assert high[1] > low[1] + 10
    assert abs(high[0] - low[0]) < 2
