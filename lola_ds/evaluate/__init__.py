"""Evaluations of emulators and autoencoders over a split: tables, figures, animation, report."""

from .processes import Processes, join_processes
from .run import (
    Evaluation,
    Forecast,
    Resources,
    evaluate,
    evaluate_autoencoder,
    spread_trajectories,
)
from .store import read_results

__all__ = [
    "Evaluation",
    "Forecast",
    "Processes",
    "Resources",
    "evaluate",
    "evaluate_autoencoder",
    "join_processes",
    "read_results",
    "spread_trajectories",
]
