"""Evaluations of emulators and autoencoders over a split: tables, figures, animation."""

from .run import (
    Evaluation,
    Forecast,
    evaluate,
    evaluate_autoencoder,
    score_autoencoder,
    score_emulator,
    spread_trajectories,
)

__all__ = [
    "Evaluation",
    "Forecast",
    "evaluate",
    "evaluate_autoencoder",
    "score_autoencoder",
    "score_emulator",
    "spread_trajectories",
]
