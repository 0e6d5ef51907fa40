"""Pictures of the trajectories in a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lola_ds.data import ShardDataset
from lola_ds.evaluate.plots.states import axis_edges, plot_trajectory
from lola_ds.evaluate.tables import even_indices

__all__ = ["draw_trajectory"]


def draw_trajectory(
    dataset: ShardDataset, trajectory: int, times: int, channels: Sequence[int], out: Path
) -> None:
    """Draws a trajectory at some times, spread evenly over its frames.

    Arguments:
        dataset: The dataset.
        trajectory: The index of the trajectory.
        times: The most times.
        channels: The indices of the channels.
        out: The PNG file.

    Raises:
        FileNotFoundError: The folder of the file does not exist.
        ValueError: The file is not named as a PNG.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} to")
    if out.suffix != ".png":
        raise ValueError(f"out={out}: the picture is a PNG; give a name that ends in .png")
    frames = even_indices(int(dataset.frames[trajectory]), times)
    states = [dataset.read_trajectory(trajectory, slice(f, f + 1))[channels] for f in frames]
    meta = dataset.meta(trajectory)
    # Latents carry the grid of the fields they come from.
    space: Mapping[str, Any] = meta.get("space", {}) if dataset.kind == "fields" else {}
    scalars = ", ".join(f"{name} {value:.4g}" for name, value in meta["scalars"].items())
    plot_trajectory(
        torch.cat(states, dim=1).numpy(),
        [dataset.fields[channel] for channel in channels],
        [_time_text(meta.get("time", {}), f) for f in frames],
        {
            axis: axis_edges(space.get(axis, {}), size)
            for axis, size in zip(dataset.axes, dataset.shape[1:])
        },
        out,
        f"{meta['key']}\n{scalars}",
    )


def _time_text(grid: Mapping[str, Any], frame: int) -> str:
    if "values" in grid:
        return f"t = {grid['values'][frame]:.3g}"
    if "start" in grid:
        return f"t = {grid['start'] + grid['step'] * frame:.3g}"
    return f"frame {frame}"
