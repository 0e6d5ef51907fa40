"""Deterministic emulators: a network completes a window of frames from the known ones.

Shapes: B batch, C channels, L frames, *S spatial axes, D label features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.models.options import check_options
from lola_ds.nn.embedding import VectorEmbedding
from lola_ds.nn.unet import UNet
from lola_ds.nn.vit import ViT

__all__ = ["Surrogate", "make_network", "make_surrogate"]

NETWORKS = {"vit": ViT, "unet": UNet}
"""The architectures of emulators by name."""


class Surrogate(nn.Module):
    """Predicts all frames of a window at once.

    Arguments:
        backbone: Maps a window, modulated by a vector and conditioned by the mask, to a window.
        label_features: The number D of label features; with 0, labels are ignored.
        emb_features: The number of modulation features.
    """

    def __init__(self, backbone: nn.Module, label_features: int = 0, emb_features: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.label_embedding = None
        if label_features:
            self.label_embedding = VectorEmbedding(label_features, emb_features)

    def forward(self, x: Tensor, mask: Tensor, label: Tensor | None = None) -> Tensor:
        """Completes windows.

        Arguments:
            x: Windows, with shape (B, C, L, *S), read where the mask is True.
            mask: True where a value is known, broadcastable to `x`.
            label: Labels, with shape (B, D).

        Returns:
            Windows, with shape (B, C, L, *S).
        """
        mask = mask.expand_as(x)
        mod = None if self.label_embedding is None else self.label_embedding(label)
        return self.backbone(torch.where(mask, x, 0.0), mod, cond=mask)


def make_network(
    what: str,
    arch: str,
    channels: int,
    cond_channels: int,
    mod_features: int,
    options: dict[str, Any],
) -> nn.Module:
    """Makes the network of an emulator.

    Arguments:
        what: The name of the configuration, for messages.
        arch: The architecture, one of `NETWORKS`.
        channels: The number C of channels of the window.
        cond_channels: The number of channels of the condition.
        mod_features: The number of modulation features.
        options: Those of the network, whose axes (`spatial`, `periodic`, `stride`, …) begin with
            time.

    Returns:
        The network.

    Raises:
        ValueError: The architecture or an option is unknown.
    """
    if arch not in NETWORKS:
        raise ValueError(f"{what}.arch='{arch}' is unknown; known: {', '.join(NETWORKS)}")
    given = {"in_channels", "out_channels", "cond_channels", "mod_features"}
    options = {"spatial": 3, **check_options(what, options, NETWORKS[arch], given)}
    return NETWORKS[arch](channels, channels, cond_channels, mod_features, **options)


def make_surrogate(
    *,
    channels: int,
    label_features: int = 0,
    emb_features: int = 256,
    arch: str = "vit",
    **options: Any,
) -> Surrogate:
    """Makes a surrogate from its configuration.

    Arguments:
        channels: The number C of channels of a frame.
        label_features: The number D of label features.
        emb_features: The number of features of the label's embedding.
        arch: The architecture, `vit` or `unet`.
        options: Those of the network; `spatial` counts time as an axis.

    Returns:
        The surrogate.

    Raises:
        ValueError: The architecture or an option is unknown.
    """
    mod_features = emb_features if label_features else 0
    backbone = make_network("surrogate", arch, channels, channels, mod_features, options)
    return Surrogate(backbone, label_features, emb_features)
