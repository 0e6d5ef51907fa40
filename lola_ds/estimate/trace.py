"""The cost of a pass of the network that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lola_ds.build.data import open_split
from lola_ds.build.networks import build_model, complete_network
from lola_ds.build.objective import build_objective
from lola_ds.config import TASKS, load_config
from lola_ds.data import Batch
from lola_ds.estimate.pass_cost import PassCost, build_fake, trace_pass
from lola_ds.nn.sequence_parallel import SequenceGroup, parallelize_sequence

__all__ = ["count_flops", "describe_frames", "trace_training"]


def describe_frames(
    config: dict[str, Any], grid: Sequence[int] | None = None
) -> tuple[tuple[int, ...], int]:
    """The shape of the frames that a training sees and the size of its labels.

    Latents are those of the autoencoder at `ae_run`, or of the `ae` group if that run does not
    exist yet.

    Arguments:
        config: The composed configuration.
        grid: The number of points along each axis of the physical grid. By default, the shape is
            read from the shards in `data`.

    Returns:
        The shape :math:`(C, *S)` and the number D of label features.

    Raises:
        ValueError: The grid does not have the axes of the dataset, or there is neither a grid nor
            data.
    """
    if grid is None:
        if not Path(config["data"]).is_dir():
            raise ValueError(
                "the size of the fields is unknown: add --grid 512x512, or data=SHARDS"
            )
        windows = open_split(config, "train")
        return windows.shape, windows.labels.shape[1]
    dataset = config["dataset"]
    if len(grid) != len(dataset["dimensions"]):
        axes = "×".join(dataset["dimensions"])
        raise ValueError(
            f"a grid of {'x'.join(map(str, grid))} points does not have the axes {axes} of "
            f"dataset={dataset['name']}"
        )
    shape, labels = (len(dataset["fields"]), *grid), len(dataset["scalars"]) + 2 * len(grid)
    if config["ae_run"] is None:
        return shape, labels
    file = Path(config["ae_run"]) / "config.yaml"
    network = complete_network({**config, "task": "autoencoder"}, shape, labels)
    if file.is_file():
        network = load_config(file)
    latent = build_fake(lambda: build_model(network).encode(torch.empty(1, *shape)))
    return tuple(latent.shape[1:]), labels


def trace_training(
    config: dict[str, Any], shape: Sequence[int], labels: int, samples: int
) -> PassCost:
    """The cost of a forward and backward pass of one rank.

    Arguments:
        config: The composed configuration.
        shape: The shape of a frame, :math:`(C, *S)`.
        labels: The number D of label features.
        samples: The micro-batch. With sequence parallelism, the ranks of a group share it.
    """
    config = complete_network(config, shape, labels)
    if config["precision"] == "auto":  # that of GPUs
        config["precision"] = "bf16"
    length = 1 if config["task"] == "autoencoder" else config["trajectory"]["length"]
    objective, x = build_fake(
        lambda: (
            build_objective(config, build_model(config)),
            torch.empty(samples, shape[0], length, *shape[1:]),
        )
    )
    ids, ones = torch.arange(samples), torch.ones(samples)
    batch = Batch(x, torch.zeros(samples, labels), seed=ids, weight=ones, window=ids)
    parallelize_sequence(objective, SequenceGroup(config["sequence_parallel"]))
    return trace_pass(objective, batch)


def count_flops(config: dict[str, Any], shape: Sequence[int], labels: int) -> float:
    """Counts the floating-point operations of a sample, forward and backward, nothing recomputed.

    Arguments:
        config: The composed configuration.
        shape: The shape of a frame, :math:`(C, *S)`.
        labels: The number D of label features.
    """
    group = TASKS[config["task"]]
    network = {**config[group], "checkpointing": "none"}
    plain = {**config, group: network, "sequence_parallel": 1}
    return trace_training(plain, shape, labels, samples=2).flops / 2
