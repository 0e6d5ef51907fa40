"""Objectives from configurations."""

from __future__ import annotations

from typing import Any

from lola_ds.objectives import (
    AutoencoderObjective,
    DiffusionObjective,
    Objective,
    SurrogateObjective,
)

__all__ = ["build_objective"]


def build_objective(config: dict[str, Any], model: Any) -> Objective:
    """Returns the objective of the configured task.

    Arguments:
        config: The composed configuration.
        model: The network.

    Raises:
        ValueError: A loss or an option of the context masks is unknown.
    """
    precision = config["precision"]
    if config["task"] == "autoencoder":
        frozen = config["fork"]["freeze"]
        return AutoencoderObjective(
            model, **config["ae"]["loss"], precision=precision, freeze=frozen
        )
    context = config["trajectory"]["context"]
    if config["task"] == "surrogate":
        loss = config["surrogate"]["loss"]
        return SurrogateObjective(model, precision=precision, loss=loss, **context)
    return DiffusionObjective(model, precision=precision, **config["denoiser"]["loss"], **context)
