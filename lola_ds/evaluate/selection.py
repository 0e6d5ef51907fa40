"""The trajectories and frames of an evaluation, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lola_ds.data import ShardDataset
from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.sampling import SAMPLERS
from lola_ds.evaluate import tables
from lola_ds.evaluate.settings import Forecast
from lola_ds.evaluate.tables import Unit
from lola_ds.metrics import Grid

__all__ = [
    "check_forecast",
    "choose_trajectories",
    "forecast_seed",
    "frame_times",
    "spread_trajectories",
    "state_bytes",
    "state_grid",
]


def spread_trajectories(dataset: ShardDataset, count: int) -> list[int]:
    """Returns the indices of `count` trajectories that are spread evenly over a dataset.

    Raises:
        ValueError: There are fewer trajectories.
    """
    if not 1 <= count <= dataset.trajectories:
        raise ValueError(
            f"trajectories={count}: the split holds {dataset.trajectories}; choose 1 to "
            f"{dataset.trajectories}, or all"
        )
    return tables.even_indices(dataset.trajectories, count)


def choose_trajectories(
    dataset: ShardDataset, trajectories: Sequence[int] | None, channels: int
) -> list[int]:
    """Returns the trajectories to evaluate and checks that the dataset holds the model's fields.

    Arguments:
        dataset: The dataset.
        trajectories: The indices of the trajectories, or None for all.
        channels: The number of fields C of the model.

    Raises:
        ValueError: The dataset does not hold these fields or trajectories.
    """
    if dataset.kind != "fields" or dataset.shape[0] != channels:
        raise ValueError(
            f"the data holds {dataset.kind} with {dataset.shape[0]} channels, the model was made "
            f"for {channels} physical fields; give data= the shards of `lola-ds shard`"
        )
    everything = range(dataset.trajectories)
    chosen = list(dict.fromkeys(everything if trajectories is None else trajectories))
    bad = [i for i in chosen if not 0 <= i < dataset.trajectories]
    if bad or not chosen:
        raise ValueError(
            f"trajectories={bad or chosen}: the split holds trajectories 0 to "
            f"{dataset.trajectories - 1}"
        )
    return chosen


def check_forecast(
    dataset: ShardDataset, chosen: Sequence[int], forecast: Forecast, emulator: Emulator
) -> None:
    """Checks that the model can make a forecast and that the trajectories are long enough for it.

    Raises:
        ValueError: They are not. The message says what is possible.
    """
    start, stride, known = max(forecast.starts), emulator.stride, forecast.context
    for name, value, least in (
        ("steps", forecast.steps, 1),
        ("members", forecast.members, 1),
        ("start", min(forecast.starts), 0),
        ("sampling_steps", forecast.sampling_steps, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    for name, value in (("context", known), ("overlap", forecast.overlap)):
        if not 1 <= value < emulator.length:
            raise ValueError(
                f"{name}={value} must be between 1 and {emulator.length - 1}: the model's window "
                f"has {emulator.length} states and must predict at least one"
            )
    if forecast.guidance is not None and not emulator.generative:
        raise ValueError("guidance is for a diffusion model; this is a surrogate")
    if forecast.guidance_scale != 1 and not (emulator.generative and emulator.model.label_dropout):
        raise ValueError(
            f"guidance_scale={forecast.guidance_scale} is for a diffusion model that was trained "
            "with denoiser.label_dropout above 0"
        )
    if forecast.sampler not in SAMPLERS:
        raise ValueError(f"sampler='{forecast.sampler}' is unknown; known: {', '.join(SAMPLERS)}")
    shortest = min(int(dataset.frames[i]) for i in chosen)
    last = start + (known + forecast.steps - 1) * stride
    if last >= shortest:
        most = (shortest - 1 - start) // stride - known + 1
        fix = f"steps={most} or less" if most > 0 else "an earlier start= or a smaller context="
        raise ValueError(
            f"steps={forecast.steps} with context={known} and start={start} needs {last + 1} "
            f"frames (states are {stride} frames apart), trajectories have {shortest}; choose {fix}"
        )


def forecast_seed(seed: int, unit: Unit, *more: int) -> int:
    """Returns the seed of a forecast's noise, which does not depend on the other forecasts.

    Arguments:
        seed: The seed of the evaluation.
        unit: The forecast.
        more: Further indices of the noise, such as the lead.
    """
    entropy = [seed, unit.trajectory, unit.start, *more]
    high, low = np.random.SeedSequence(entropy).generate_state(2).tolist()
    return (high >> 1) << 32 | low


def frame_times(dataset: ShardDataset, trajectory: int, frames: slice) -> np.ndarray:
    """Returns the times of frames, from the metadata of the trajectory, with shape (T)."""
    time, count = dataset.meta(trajectory)["time"], int(dataset.frames[trajectory])
    if "values" in time:
        times = np.asarray(time["values"], np.float64)
    else:
        times = time["start"] + time["step"] * np.arange(count)
    return times[frames]


def state_grid(dataset: ShardDataset) -> Grid:
    """Returns the spatial axes of a dataset, which all trajectories share."""
    space = dataset.meta(0)["space"]
    return Grid(dataset.shape[1:], [space.get(axis, {}).get("values") for axis in dataset.axes])


def state_bytes(dataset: ShardDataset) -> int:
    """Returns the bytes of one state of all fields in float32."""
    return 4 * int(np.prod(dataset.shape))
