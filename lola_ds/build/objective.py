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
    """What is minimised: the model and its loss."""
    precision = config["precision"]
    if config["task"] == "autoencoder":
        frozen = config["fork"]["freeze"]
        return AutoencoderObjective(
            model, **config["ae"]["loss"], precision=precision, freeze=frozen
        )
    context = config["trajectory"]["context"]
    if config["task"] == "surrogate":
        return SurrogateObjective(model, precision=precision, **context)
    return DiffusionObjective(model, precision=precision, **config["denoiser"]["loss"], **context)
