"""Emulating trajectories with a trained model: sampling and rollout."""

from lola_ds.emulate.rollout import make_step, rollout
from lola_ds.emulate.sampling import sample

__all__ = ["make_step", "rollout", "sample"]
