"""From a dataset's configuration to how networks see its states and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lola_ds.fields import Standardize

__all__ = ["label_logs", "log_label", "make_standardize"]


def make_standardize(dataset: dict[str, Any]) -> Standardize:
    """Returns the transform and standardisation of a dataset's fields."""
    stats = dataset["stats"]
    return Standardize(stats["mean"], stats["std"], dataset["transform"])


def label_logs(dataset: dict[str, Any]) -> list[int]:
    """Returns the positions in the label of the scalars whose logarithm the networks see.

    Raises:
        ValueError: `dataset.log_scalars` names a scalar that `dataset.scalars` does not.
    """
    for name in dataset["log_scalars"]:
        if name not in dataset["scalars"]:
            raise ValueError(
                f"dataset.log_scalars names {name}, which is not in "
                f"dataset.scalars={dataset['scalars']}"
            )
    return [dataset["scalars"].index(name) for name in dataset["log_scalars"]]


def log_label(label: Tensor, logs: Sequence[int]) -> Tensor:
    """Replaces entries of labels by their natural logarithm.

    Arguments:
        label: The labels, with shape (..., D).
        logs: The positions of the entries.
    """
    if not logs:
        return label
    label = label.clone()
    label[..., logs] = label[..., logs].log()
    return label
