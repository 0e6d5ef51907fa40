r"""Denoisers: what diffusion models train.

For the perturbation :math:`x_t = \alpha_t x + \sigma_t z`, a denoiser gives the mean and variance
of :math:`p(x \mid x_t)`. The network :math:`F` is preconditioned so that its input and its target
have unit variance when the data does:

.. math::
    \mu(x_t) = c_\mathrm{skip} \, x_t
        + c_\mathrm{out} \, F(c_\mathrm{in} \, x_t, c_\mathrm{time}) \, ,
    \qquad \nu_t = \alpha_t^2 + \sigma_t^2

.. math::
    c_\mathrm{in} = \frac{1}{\sqrt{\nu_t}} \qquad
    c_\mathrm{out} = \frac{\sigma_t}{\sqrt{\nu_t}} \qquad
    c_\mathrm{skip} = \frac{\alpha_t}{\nu_t} \qquad
    c_\mathrm{time} = 10 \log \frac{\sigma_t}{\alpha_t} \qquad
    \mathbb{V} = \frac{\sigma_t^2}{\nu_t}

Known frames enter clean: there :math:`x_t = \sqrt{\nu_t} \, x`, which :math:`c_\mathrm{in}` undoes.

Shapes: B batch, C channels, L frames, *S spatial axes, D label features.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from azula.noise import Schedule
from torch import Tensor, nn

from lola_ds.models.schedules import make_schedule
from lola_ds.models.surrogate import make_network
from lola_ds.nn.embedding import ScalarEmbedding, VectorEmbedding

__all__ = ["ConditionedNetwork", "Denoiser", "Posterior", "make_denoiser"]


@dataclass(frozen=True)
class Posterior:
    """A Gaussian approximation of p(x | x_t).

    Arguments:
        mean: The mean, with shape (B, C, L, *S).
        var: The variance, broadcastable to the mean.
        output: The network's output F, with the shape of the mean. It equals
            (mean - c_skip x_t) / c_out, without the cancellation of that difference.
    """

    mean: Tensor
    var: Tensor
    output: Tensor


class ConditionedNetwork(nn.Module):
    """A network modulated by a time and a label, conditioned by a mask.

    Arguments:
        backbone: Maps a window, modulated by a vector and conditioned by a mask, to a window.
        emb_features: The number of modulation features.
        label_features: The number D of label features; with 0, labels are ignored.
        masked: Whether the mask is given to the network.
        label_dropout: The probability, in training, that a sample's label is dropped. Above 0,
            the network also answers without a label.
    """

    def __init__(
        self,
        backbone: nn.Module,
        emb_features: int,
        label_features: int = 0,
        masked: bool = True,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise ValueError(f"denoiser.label_dropout={label_dropout} should be in [0, 1)")
        self.backbone = backbone
        self.masked = masked
        self.label_dropout = label_dropout
        self.time_embedding = ScalarEmbedding(emb_features)
        self.label_embedding = None
        if label_features:
            self.label_embedding = VectorEmbedding(label_features, emb_features)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        label: Tensor | None = None,
        keep_label: Tensor | None = None,
    ) -> Tensor:
        """Maps windows at given times to windows.

        Arguments:
            x: Windows, with shape (B, C, L, *S).
            time: Times, with shape (B,).
            mask: True where a value is known, broadcastable to `x`; None for nowhere.
            label: Labels, with shape (B, D); None for none.
            keep_label: True where the label is kept, with shape (B,); everywhere by default.

        Returns:
            Windows, with shape (B, C, L, *S).

        Raises:
            ValueError: There is no label and the network was trained without `label_dropout`.
        """
        mod = self.time_embedding(time)
        if self.label_embedding is not None and label is not None:
            embedding = self.label_embedding(label)
            if keep_label is not None:
                embedding = torch.where(keep_label[:, None], embedding, 0.0)
            mod = mod + embedding
        elif self.label_embedding is not None and self.label_dropout == 0:
            raise ValueError(
                "this denoiser needs its label; only one trained with denoiser.label_dropout above "
                "0 answers without (label=None, or a guidance_scale other than 1)"
            )
        cond = None
        if self.masked:
            cond = torch.zeros_like(x) if mask is None else mask.expand_as(x)
        return self.backbone(x, mod, cond=cond)


class Denoiser(nn.Module):
    """A preconditioned denoiser; works with azula's samplers.

    Arguments:
        backbone: The network F, called with a scaled window, a time, a mask and a label.
        schedule: The noise schedule.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models
        | (Karras et al., 2022), equation 7 and table 1
        | https://arxiv.org/abs/2206.00364
    """

    backbone: Any  # a ConditionedNetwork, or a module with the same signature

    def __init__(self, backbone: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.backbone = backbone
        self.schedule = schedule

    @property
    def label_dropout(self) -> float:
        """The probability, in training, that a sample's label is dropped."""
        return self.backbone.label_dropout

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        label: Tensor | None = None,
        keep_label: Tensor | None = None,
    ) -> Posterior:
        """Computes the mean and variance of the posterior.

        The network runs in float32; scales are applied in the dtype of `x_t`, so that a float64
        sampler does not lose the network's digits at low noise.

        Arguments:
            x_t: Noisy windows, with shape (B, C, L, *S), equal to sqrt(alpha² + sigma²) x where
                the mask is True.
            t: Times, with shape () or (B,).
            mask: True where a value is known, broadcastable to `x_t`; None for nowhere.
            label: Labels, with shape (B, D); None for an answer without.
            keep_label: True where the network sees the label, with shape (B,); everywhere by
                default.

        Returns:
            The posterior p(x | x_t), whose mean has the shape of `x_t`.

        Raises:
            ValueError: There is no label and the network has not learned to do without.
        """
        scales = (s.to(x_t.dtype).expand(len(x_t)) for s in self.schedule(t))
        alpha_t, sigma_t = (s.view(-1, *[1] * (x_t.ndim - 1)) for s in scales)
        total = alpha_t.square() + sigma_t.square()
        c_in = torch.rsqrt(total)
        c_time = 10 * torch.log(sigma_t / alpha_t).flatten()
        scaled, c_time = (c_in * x_t).float(), c_time.float()
        output = self.backbone(scaled, c_time, mask=mask, label=label, keep_label=keep_label)
        output = output.to(x_t)
        mean = alpha_t / total * x_t + sigma_t * c_in * output
        return Posterior(mean=mean, var=sigma_t.square() / total, output=output)


def make_denoiser(
    *,
    channels: int,
    schedule: Mapping[str, Any],
    label_features: int = 0,
    emb_features: int = 256,
    masked: bool = True,
    label_dropout: float = 0.0,
    arch: str = "vit",
    **options: Any,
) -> Denoiser:
    """Makes a denoiser from its configuration.

    Arguments:
        channels: The number C of channels of a frame.
        schedule: The noise schedule's name and options.
        label_features: The number D of label features.
        emb_features: The number of features of the embeddings.
        masked: Whether the network sees which frames are known.
        label_dropout: The probability, in training, that a sample's label is dropped.
        arch: The architecture, `vit` or `unet`.
        options: Those of the network; `spatial` counts time as an axis.

    Returns:
        The denoiser.

    Raises:
        ValueError: The architecture, the schedule or an option is unknown.
    """
    cond_channels = channels if masked else 0
    backbone = make_network("denoiser", arch, channels, cond_channels, emb_features, options)
    network = ConditionedNetwork(backbone, emb_features, label_features, masked, label_dropout)
    return Denoiser(network, make_schedule(schedule))
