"""From configuration to objects: the only place where names in YAML become classes."""

from lola_ds.build.data import make_prepare, make_standardize, open_split
from lola_ds.build.load import (
    AUTOENCODER,
    WEIGHTS,
    autoencoder_folder,
    check_weights,
    load_emulator,
    load_model,
    load_weights_of,
)
from lola_ds.build.networks import build_model, build_objective, complete_network
from lola_ds.build.training import build_training

__all__ = [
    "AUTOENCODER",
    "WEIGHTS",
    "autoencoder_folder",
    "build_model",
    "build_objective",
    "build_training",
    "check_weights",
    "complete_network",
    "load_emulator",
    "load_model",
    "load_weights_of",
    "make_prepare",
    "make_standardize",
    "open_split",
]
