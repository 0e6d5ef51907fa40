"""Emulating trajectories with a trained model: sampling and rollout."""

from lola_ds.emulate.options import SamplingOptions
from lola_ds.emulate.rollout import make_step, rollout
from lola_ds.emulate.sampling import sample

__all__ = ["SamplingOptions", "make_step", "rollout", "sample"]
