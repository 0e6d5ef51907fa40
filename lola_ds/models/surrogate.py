"""Deterministic emulators: a network completes a window of frames from the known ones.

Shapes: B batch, C channels, L frames, *S spatial axes, D label features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.models.options import check_options
from lola_ds.nn.embedding import VectorEmbedding
from lola_ds.nn.vit import ViT


class Surrogate(nn.Module):
    """Predicts all frames of a window at once.

    Arguments:
        backbone: maps a window, modulated by a vector and conditioned by the mask, to a window.
        label_features: the number D of label features; with 0, labels are ignored.
        emb_features: the number of modulation features.
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
            x: windows, with shape (B, C, L, *S), read where the mask is True.
            mask: True where a value is known, broadcastable to `x`.
            label: labels, with shape (B, D).

        Returns:
            Windows, with shape (B, C, L, *S).
        """
        mask = mask.expand_as(x)
        mod = None if self.label_embedding is None else self.label_embedding(label)
        return self.backbone(torch.where(mask, x, 0.0), mod, cond=mask)


def window_axes(periodic: bool | Sequence[bool], spatial: int) -> tuple[bool, ...]:
    """Which axes of a window are periodic: never time, unless a flag is given for it too.

    Arguments:
        periodic: whether axes of space are periodic, for all or each; or one flag for each axis of
            the window.
        spatial: the number of axes of the window, time being the first.
    """
    if isinstance(periodic, bool):
        periodic = (periodic,) * (spatial - 1)
    flags = tuple(bool(flag) for flag in periodic)
    return (False, *flags) if len(flags) == spatial - 1 else flags


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
        what: the name of the configuration, for messages.
        arch: the architecture, `vit`.
        channels: the number C of channels of the window.
        cond_channels: the number of channels of the condition.
        mod_features: the number of modulation features.
        options: those of the network, of which `spatial` counts time as the first axis.

    Raises:
        ValueError: if the architecture or an option is unknown.
    """
    if arch != "vit":
        raise ValueError(f"{what}.arch='{arch}' is unknown; known: vit")
    given = {"in_channels", "out_channels", "cond_channels", "mod_features"}
    options = {"spatial": 3, "periodic": False, **check_options(what, options, ViT, given)}
    options["periodic"] = window_axes(options["periodic"], options["spatial"])
    return ViT(channels, channels, cond_channels, mod_features, **options)


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
        channels: the number C of channels of a frame.
        label_features: the number D of label features.
        emb_features: the number of features of the label's embedding.
        arch: the architecture, `vit`.
        options: those of the network; `spatial` counts time as an axis.

    Raises:
        ValueError: if the architecture or an option is unknown.
    """
    mod_features = emb_features if label_features else 0
    backbone = make_network("surrogate", arch, channels, channels, mod_features, options)
    return Surrogate(backbone, label_features, emb_features)
