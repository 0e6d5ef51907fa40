"""What is trained: autoencoders, surrogates and denoisers."""

from lola_ds.models.autoencoder import Autoencoder, make_autoencoder
from lola_ds.models.denoiser import Denoiser, Posterior, make_denoiser
from lola_ds.models.surrogate import Surrogate, make_surrogate

__all__ = [
    "Autoencoder",
    "Denoiser",
    "Posterior",
    "Surrogate",
    "make_autoencoder",
    "make_denoiser",
    "make_surrogate",
]
