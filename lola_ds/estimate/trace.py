"""What a training will take, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lola_ds.build.networks import build_model, build_objective, complete_network
from lola_ds.config import load_config
from lola_ds.data import Batch
from lola_ds.estimate.cost import PassCost, build_fake, trace_pass
from lola_ds.nn.sequence_parallel import SequenceGroup, parallelize_sequence


def describe_frames(config: dict[str, Any], grid: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The shape (C, *S) of the frames a training sees and its label size, without any data.

    Latents are those of the autoencoder at `ae_run`, or of the `ae` group if that does not exist
    yet.

    Arguments:
        config: the composed configuration.
        grid: the points of the physical grid along each axis.

    Raises:
        ValueError: the grid has not as many axes as the dataset.
    """
    dataset = config["dataset"]
    if len(grid) != len(dataset["dimensions"]):
        axes = "×".join(dataset["dimensions"])
        raise ValueError(
            f"a grid of {'x'.join(map(str, grid))} points has not the axes {axes} of "
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
    """The cost of a forward and backward pass over `samples` frames or windows.

    Arguments:
        config: the composed configuration.
        shape: the shape of a frame, (C, *S).
        labels: the number D of label features.
        samples: the micro-batch; of the ranks that share it, the cost of one.
    """
    config = complete_network(config, shape, labels)
    if config["precision"] == "auto":  # that of the GPUs a training is planned for
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
