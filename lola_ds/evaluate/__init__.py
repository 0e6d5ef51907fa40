"""Evaluations of emulators and autoencoders over a split: tables, figures, animation, report."""

from .output import Evaluation
from .processes import Processes, join_processes
from .run import evaluate, evaluate_autoencoder
from .selection import spread_trajectories
from .settings import Forecast, Resources
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
