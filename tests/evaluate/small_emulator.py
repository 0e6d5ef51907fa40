"""A small emulator: a denoiser of windows of five states, of pixels or latents."""

from __future__ import annotations

import torch

from lola_ds.emulate.emulator import Emulator
from lola_ds.fields import Standardize
from lola_ds.models import make_autoencoder, make_denoiser


def make_emulator(
    fields: int, latent: bool = True, spatial: int = 2, labels: int = 5, factor: int = 16
) -> Emulator:
    """Random weights, the same at every call.

    Arguments:
        fields: C.
        latent: whether there is an autoencoder.
        spatial: the number of spatial axes.
        labels: features of the label.
        factor: cells along each axis of a latent, or of a patch of a model of pixels; 2, 4, 8….
    """
    torch.manual_seed(0)
    network = {"spatial": 1 + spatial, "label_features": labels, "emb_features": 16}
    network |= {"hid_channels": 32, "hid_blocks": 1, "attention_heads": 2}
    network |= {"channels": 8 if latent else fields}
    network |= {"patch_size": [1, *[1 if latent else factor] * spatial]}
    denoiser = make_denoiser(**network, schedule={"name": "log_logit"})
    depth = factor.bit_length()
    levels = {"hid_channels": [8, 8, 16, 16, 32, 32][:depth], "hid_blocks": [1] * depth}
    autoencoder = (
        make_autoencoder(pix_channels=fields, lat_channels=8, spatial=spatial, **levels)
        if latent
        else None
    )
    standardize = Standardize([0.0] * fields, [1.0] * fields)
    return Emulator(denoiser, autoencoder, standardize, {"length": 5, "stride": 1}, spatial=spatial)
