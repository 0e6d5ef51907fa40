"""Networks from configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lola_ds.config import TASKS
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate
from lola_ds.nn.layers import per_axis, periodic_axes

__all__ = ["build_model", "complete_network", "count_tokens"]


def complete_network(config: dict[str, Any], shape: Sequence[int], labels: int) -> dict[str, Any]:
    """Completes a configuration by what the data decides: channels, axes, labels, periodicity.

    Arguments:
        config: The composed configuration.
        shape: The shape of a frame, (C, *S).
        labels: The number D of label features.

    Returns:
        The configuration, without the groups of other tasks' networks.
    """
    group = TASKS[config["task"]]
    channels, axes = shape[0], len(shape) - 1
    periodic = periodic_axes(config["dataset"]["periodic"], axes)
    network = dict(config[group])
    if group == "ae":
        network |= {"pix_channels": channels, "spatial": axes}
    else:  # time is the first axis of an emulator, and does not wrap unless told to
        network |= {"channels": channels, "spatial": axes + 1, "label_features": labels}
        periodic = (False, *periodic)
    if network.get("periodic") is None:
        network["periodic"] = list(periodic)
    unused = set(TASKS.values()) - {group}
    return {key: value for key, value in config.items() if key not in unused} | {group: network}


def build_model(config: dict[str, Any]) -> Any:
    """Builds the network of a completed configuration.

    Arguments:
        config: The configuration, as `complete_network` returns it.

    Returns:
        An `Autoencoder`, `Surrogate` or `Denoiser`.

    Raises:
        ValueError: A key of the network's group is unknown or missing.
    """
    group = TASKS[config["task"]]
    make = {"ae": make_autoencoder, "surrogate": make_surrogate, "denoiser": make_denoiser}[group]
    try:
        return make(**config[group])
    except TypeError as error:
        raise ValueError(f"{group}: {error}") from error


def count_tokens(config: dict[str, Any], shape: Sequence[int]) -> int:
    """Counts the tokens of a sample: patches of a window, or of an autoencoder's state.

    Arguments:
        config: The completed configuration.
        shape: The shape of a frame, (C, *S).
    """
    patch = config[TASKS[config["task"]]].get("patch_size", 1)
    axes = shape[1:]
    if config["task"] != "autoencoder":
        axes = (config["trajectory"]["length"], *axes)
    return math.prod(axes) // math.prod(per_axis(patch, len(axes), "patch_size"))
