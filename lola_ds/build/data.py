"""Windows of shards, and their preparation for networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lola_ds.build.physics import label_logs, log_label, make_standardize
from lola_ds.data import Batch, ShardDataset

__all__ = ["make_prepare", "open_split"]


def open_split(config: dict[str, Any], split: str) -> ShardDataset:
    """Opens the windows of a split: `data/<physics>/<split>` of every physics of the dataset.

    Arguments:
        config: The composed configuration.
        split: `train`, `valid` or `test`.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The shards hold latents where the task needs fields, the reverse, or other
            channels.
    """
    root, dataset = Path(config["data"]), config["dataset"]
    folders = [root / physics / split for physics in dataset["physics"]]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist; data={root} must hold <physics>/<split> as "
                "`lola-ds shard` and `lola-ds encode` write them"
            )
    pixels = config["task"] == "autoencoder"
    windows = ShardDataset(
        folders,
        length=1 if pixels else config["trajectory"]["length"],
        stride=1 if pixels else config["trajectory"]["stride"],
        max_trajectories=config["train"]["max_trajectories"] if split == "train" else None,
        verify_reads=config["train"]["verify_reads"],
    )
    _check_kind(config, windows)
    return windows


def _check_kind(config: dict[str, Any], windows: ShardDataset) -> None:
    latents = config["ae_run"] is not None
    if (windows.kind == "latents") != latents:
        fix = (
            "give latent shards (`lola-ds encode`)"
            if latents
            else "add ae_run=… (the autoencoder's run), or give shards of fields"
        )
        raise ValueError(f"data={config['data']} holds {windows.kind}; {fix}")
    channels, fields = windows.shape[0], config["dataset"]["fields"]
    if not latents and channels != len(fields):
        raise ValueError(
            f"data={config['data']} has {channels} channels ({', '.join(windows.fields)}), "
            f"dataset.fields has {len(fields)}; choose the dataset= the shards were made from"
        )


def make_prepare(config: dict[str, Any]) -> Callable[[Batch], Batch]:
    """Returns a function that standardises batches and takes logarithms of labels."""
    standardize = make_standardize(config["dataset"]) if config["ae_run"] is None else None
    logs = label_logs(config["dataset"])

    def prepare(batch: Batch) -> Batch:
        x = batch.x if standardize is None else standardize.to(batch.x.device)(batch.x)
        return replace(batch, x=x, label=log_label(batch.label, logs))

    return prepare
