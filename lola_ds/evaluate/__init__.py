"""Evaluations of emulators and autoencoders on a split: tables, figures, animations, reports."""

from lola_ds.evaluate.output import Evaluation
from lola_ds.evaluate.processes import Processes, join_processes
from lola_ds.evaluate.resources import Resources
from lola_ds.evaluate.run import evaluate, evaluate_autoencoder
from lola_ds.evaluate.selection import spread_trajectories
from lola_ds.evaluate.settings import Forecast
from lola_ds.evaluate.store import read_results

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
