"""From configurations and folders to networks, emulators, data and trainings.

What this package exports is enough to load a model and imports neither data nor training code.
"""

from lola_ds.build.load import (
    AUTOENCODER,
    WEIGHTS,
    autoencoder_folder,
    check_weights,
    load_emulator,
    load_model,
    load_weights_of,
)
from lola_ds.build.networks import build_model, complete_network
from lola_ds.build.physics import make_standardize

__all__ = [
    "AUTOENCODER",
    "WEIGHTS",
    "autoencoder_folder",
    "build_model",
    "check_weights",
    "complete_network",
    "load_emulator",
    "load_model",
    "load_weights_of",
    "make_standardize",
]
