r"""Autoencoders of physical states.

An encoder maps a state :math:`x` to a latent :math:`z`, bounded by a saturation; a decoder maps it
back. In training, noise of standard deviation `latent_noise` may be added to the latent before
decoding, so that the decoder tolerates the errors of an emulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lola_ds.kernels import seeded_normal
from lola_ds.models.options import check_options
from lola_ds.nn.dcae import DCDecoder, DCEncoder
from lola_ds.nn.vit import ViT

__all__ = ["SATURATIONS", "Autoencoder", "make_autoencoder"]

BOUND = 5.0

SATURATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softclip2": lambda z: z * torch.rsqrt(1 + (z / BOUND).square()),
    "softclip": lambda z: z / (1 + z.abs() / BOUND),
    "tanh": lambda z: BOUND * torch.tanh(z / BOUND),
    "arcsinh": torch.arcsinh,
    "rmsnorm": lambda z: F.rms_norm(z.movedim(1, -1), z.shape[1:2], eps=1e-5).movedim(-1, 1),
    "none": lambda z: z,
}
"""Bounds of the latent by name; the first three keep it within ±5."""


class Autoencoder(nn.Module):
    """An encoder and a decoder, with a bounded latent between them.

    Arguments:
        encoder: Maps (B, C, *S) to (B, C', *S').
        decoder: Maps (B, C', *S') to (B, C, *S).
        saturation: The bound of the latent, one of `SATURATIONS`.
        latent_noise: The standard deviation of the noise added in training.

    Raises:
        ValueError: The saturation is unknown or the noise negative.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        saturation: str | None = "softclip2",
        latent_noise: float = 0.0,
    ) -> None:
        super().__init__()
        saturation = saturation or "none"
        if saturation not in SATURATIONS:
            raise ValueError(
                f"ae.saturation='{saturation}' is unknown; known: {', '.join(SATURATIONS)}"
            )
        if latent_noise < 0:
            raise ValueError(f"ae.latent_noise={latent_noise} should not be negative")
        self.encoder = encoder
        self.decoder = decoder
        self.saturation = saturation
        self.latent_noise = latent_noise

    def encode(self, x: Tensor) -> Tensor:
        """Encodes states.

        Arguments:
            x: Standardised states, with shape (B, C, *S).

        Returns:
            Latents, with shape (B, C', *S').
        """
        return SATURATIONS[self.saturation](self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents.

        Arguments:
            z: Latents, with shape (B, C', *S').

        Returns:
            Standardised states, with shape (B, C, *S).
        """
        return self.decoder(z)

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes and decodes states.

        Arguments:
            x: Standardised states, with shape (B, C, *S).
            seeds: The seed of each sample, with shape (B,). In training, noise drawn from them is
                added to the latent before decoding; without them there is none.

        Returns:
            The reconstruction, with shape (B, C, *S), and the noiseless latent, with shape (B, C',
            *S').
        """
        z = self.encode(x)
        if self.training and self.latent_noise and seeds is not None:
            noise = seeded_normal(seeds, z.shape[1:], z.device)
            return self.decode(z + self.latent_noise * noise), z
        return self.decode(z), z


def make_autoencoder(
    *,
    pix_channels: int,
    lat_channels: int,
    arch: str = "dcae",
    saturation: str | None = "softclip2",
    latent_noise: float = 0.0,
    **options: Any,
) -> Autoencoder:
    """Makes an autoencoder from its configuration.

    Arguments:
        pix_channels: The number C of fields.
        lat_channels: The number C' of latent channels.
        arch: The architecture, `dcae` or `vit`.
        saturation: The bound of the latent.
        latent_noise: The standard deviation of the latent noise in training.
        options: Those of the encoder, which the decoder mirrors: of `DCEncoder`, or of `ViT`,
            where latents have `unpatch_size` (1 by default) points along each axis for
            `patch_size` of the field.

    Returns:
        The autoencoder.

    Raises:
        ValueError: The architecture or an option is unknown.
    """
    if arch == "dcae":
        options = check_options("ae", options, DCEncoder, {"in_channels", "out_channels"})
        encoder = DCEncoder(pix_channels, lat_channels, **options)
        decoder = DCDecoder(lat_channels, pix_channels, **options)
    elif arch == "vit":
        given = {"in_channels", "out_channels", "cond_channels", "mod_features"}
        options = check_options("ae", options, ViT, given)
        fine, coarse = options.pop("patch_size", 1), options.pop("unpatch_size", None) or 1
        encoder = ViT(pix_channels, lat_channels, patch_size=fine, unpatch_size=coarse, **options)
        decoder = ViT(lat_channels, pix_channels, patch_size=coarse, unpatch_size=fine, **options)
    else:
        raise ValueError(f"ae.arch='{arch}' is unknown; known: dcae, vit")
    return Autoencoder(encoder, decoder, saturation, latent_noise)
