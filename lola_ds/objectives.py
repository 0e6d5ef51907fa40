r"""Training objectives, which map a batch to a scalar loss.

Each objective is a module that holds a model and maps a `Batch` to ``(loss, scalars)``. Losses are
computed sample by sample and averaged with the batch's weights, :math:`\ell = \frac{1}{B} \sum_i
w_i \, \ell_i`, so that padding does not count. All randomness but dropout comes from each
sample's own seed.

Shapes: B batch, C channels, L frames, *S spatial axes, D label features.

Precision: with ``bf16`` the network runs under autocast; parameters, losses and the arithmetic
around the network stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lola_ds.binned_losses import by_lead, by_noise
from lola_ds.hashing import derive, uniform
from lola_ds.kernels import denoising_errors, seeded_normal
from lola_ds.masks import ContextLaw, draw_context_masks
from lola_ds.models.autoencoder import Autoencoder
from lola_ds.models.denoiser import Denoiser
from lola_ds.models.schedules import TimePrior
from lola_ds.models.surrogate import Surrogate
from lola_ds.nn.freeze import freeze_parameters

__all__ = [
    "AutoencoderObjective",
    "BatchLike",
    "DiffusionObjective",
    "Objective",
    "SurrogateObjective",
    "draw_masks",
    "draw_uniform",
    "frame_errors",
    "frame_seeds",
    "mae",
    "mse",
    "similarity",
    "vmse",
    "vrmse",
    "weighted_mean",
]

VARIANCE_FLOOR = 1e-2
"""Added to the variance of a field, so that a constant field does not divide by zero."""

Scalars = dict[str, Tensor]
"""What an objective measured beside its loss: means over the batch, and binned losses (2, K)."""


class BatchLike(Protocol):
    """The part of a batch that objectives read.

    Attributes:
        x: Standardised windows, with shape (B, C, L, *S).
        label: Labels, with shape (B, D).
        seed: Random seeds, with shape (B,), int64, on the CPU.
        weight: Weights of the samples, with shape (B,).
    """

    x: Tensor
    label: Tensor
    seed: Tensor
    weight: Tensor


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Computes the mean squared error.

    Arguments:
        x: Standardised states, with shape (B, C, *S).
        y: Their reconstructions, with shape (B, C, *S).

    Returns:
        The error of each sample, with shape (B,).
    """
    return (x - y).square().flatten(1).mean(dim=1)


def mae(x: Tensor, y: Tensor) -> Tensor:
    """Computes the mean absolute error.

    Arguments:
        x: Standardised states, with shape (B, C, *S).
        y: Their reconstructions, with shape (B, C, *S).

    Returns:
        The error of each sample, with shape (B,).
    """
    return (x - y).abs().flatten(1).mean(dim=1)


def _field_vmse(x: Tensor, y: Tensor) -> Tensor:
    """Squared error over the variance in space of `x` (unbiased), with shape (B, C)."""
    x, y = x.flatten(2), y.flatten(2)
    return (x - y).square().mean(dim=2) / (x.var(dim=2) + VARIANCE_FLOOR)


def vmse(x: Tensor, y: Tensor) -> Tensor:
    r"""Computes the mean squared error over the variance of each field.

    .. math:: \frac{1}{C} \sum_c \frac{\langle (x_c - y_c)^2 \rangle}{\mathbb{V}[x_c] + 10^{-2}}

    Arguments:
        x: Standardised states, with shape (B, C, *S).
        y: Their reconstructions, with shape (B, C, *S).

    Returns:
        The error of each sample, with shape (B,).
    """
    return _field_vmse(x, y).mean(dim=1)


def vrmse(x: Tensor, y: Tensor) -> Tensor:
    """Computes the mean over fields of the roots of the ratios of `vmse`.

    Arguments:
        x: Standardised states, with shape (B, C, *S).
        y: Their reconstructions, with shape (B, C, *S).

    Returns:
        The error of each sample, with shape (B,).
    """
    return _field_vmse(x, y).sqrt().mean(dim=1)


def similarity(z: Tensor, weight: Tensor) -> Tensor:
    """Mean cosine similarity of each latent with the others of the batch.

    Arguments:
        z: Latents, with shape (B, C', *S').
        weight: The samples' weights, with shape (B,); those of weight 0 are excluded from the mean.

    Returns:
        Similarities, with shape (B,); zero where there is no other latent.
    """
    z = F.normalize(z.flatten(1), dim=1)
    present = (weight > 0).to(z)
    others = present.expand(len(z), -1) - torch.diag(present)
    return (z @ z.T * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)


RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "mae": mae,
    "vmse": vmse,
    "vrmse": vrmse,
}


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the networks' matrix products and convolutions run in."""


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Averages weighted losses over a batch.

    Arguments:
        loss: The samples' losses, with shape (B,).
        weight: The samples' weights, with shape (B,).

    Returns:
        The mean, a scalar.
    """
    return (weight * loss).mean()


class Objective(nn.Module):
    """Base class of objectives: the model and the precision in which its network runs.

    Arguments:
        model: The model to train.
        precision: `fp32`, `bf16` or `fp16`.

    Raises:
        ValueError: The precision is unknown.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision='{precision}' is unknown; known: {', '.join(PRECISIONS)}")
        self.model = model
        self.precision = precision

    def autocast(self, x: Tensor) -> AbstractContextManager:
        """Returns the context in which the network runs on inputs like `x`."""
        dtype = PRECISIONS[self.precision]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=dtype)


class AutoencoderObjective(Objective):
    """Trains an autoencoder to reconstruct states; frames of a window are independent states.

    Arguments:
        model: The autoencoder.
        losses: Names of losses: mse, mae, vmse, vrmse (of the reconstruction), similarity (of
            latents).
        weights: The weight of each loss.
        precision: `fp32`, `bf16` or `fp16`.
        freeze: The half that does not learn, `encoder` or `decoder`; it works as in inference,
            without dropout.

    Raises:
        ValueError: A loss is unknown or there are not as many weights as losses.
    """

    model: Autoencoder

    def __init__(
        self,
        model: Autoencoder,
        losses: Sequence[str] = ("vrmse",),
        weights: Sequence[float] = (1.0,),
        precision: str = "fp32",
        freeze: str | None = None,
    ) -> None:
        super().__init__(model, precision)
        self.frozen = () if freeze is None else (freeze_parameters(getattr(model, freeze)),)
        known = (*RECONSTRUCTION_LOSSES, "similarity")
        for name in losses:
            if name not in known:
                raise ValueError(f"loss.losses: '{name}' is unknown; known: {', '.join(known)}")
        if not losses or len(losses) != len(weights):
            raise ValueError(
                f"loss.losses={list(losses)} and loss.weights={list(weights)} should have the "
                "same length, at least 1"
            )
        self.losses = dict(zip(losses, weights))

    def train(self, mode: bool = True) -> AutoencoderObjective:
        """Sets the mode of all but the frozen half."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, batch: BatchLike) -> tuple[Tensor, Scalars]:
        """Computes the loss of a batch.

        Arguments:
            batch: The batch, with B windows.

        Returns:
            The loss, a scalar, and each of its terms.
        """
        frames = batch.x.shape[2]
        x = batch.x.transpose(1, 2).flatten(0, 1)
        weight = batch.weight.repeat_interleave(frames)
        with self.autocast(x):
            y, z = self.model(x, frame_seeds(batch.seed, frames))
        scalars = {}
        for name in self.losses:
            if name == "similarity":
                term = similarity(z, weight)
            else:
                term = RECONSTRUCTION_LOSSES[name](x, y)
            scalars[name] = weighted_mean(term, weight)
        loss = torch.stack([w * scalars[name] for name, w in self.losses.items()]).sum()
        return loss, {name: term.detach() for name, term in scalars.items()}


def frame_seeds(seeds: Tensor, frames: int) -> Tensor:
    """Derives a seed for each frame of each sample.

    Arguments:
        seeds: The samples' seeds, with shape (B,).
        frames: The number L of frames.

    Returns:
        Seeds, with shape (B L,).
    """
    return torch.from_numpy(derive(seeds.numpy(), frames)).flatten()


class SurrogateObjective(Objective):
    """Trains a surrogate to complete windows, all frames counted alike.

    Arguments:
        model: The surrogate.
        precision: `fp32`, `bf16` or `fp16`.
        loss: `mse`, `mae`, `vmse` or `vrmse`.
        context: The options of the law of context masks; see `ContextLaw`.

    Raises:
        ValueError: The loss is unknown or the law has a wrong option.
    """

    model: Surrogate

    def __init__(
        self,
        model: Surrogate,
        *,
        precision: str = "fp32",
        loss: str = "mse",
        **context: Any,
    ) -> None:
        super().__init__(model, precision)
        if loss not in RECONSTRUCTION_LOSSES:
            known = ", ".join(RECONSTRUCTION_LOSSES)
            raise ValueError(f"surrogate.loss='{loss}' is unknown; known: {known}")
        self.masks = ContextLaw(**context)
        self.loss = loss

    def forward(self, batch: BatchLike) -> tuple[Tensor, Scalars]:
        """Computes the loss of a batch.

        Arguments:
            batch: The batch, with B windows.

        Returns:
            The loss, a scalar, and what else was measured, by name.
        """
        x = batch.x
        mask = draw_masks(self.masks, x, draw_uniform(batch.seed, 2))
        with self.autocast(x):
            y = self.model(x, mask, batch.label)
        loss = weighted_mean(RECONSTRUCTION_LOSSES[self.loss](x, y), batch.weight)
        errors = frame_errors(y, x)
        return loss, {
            self.loss: loss.detach(),
            "by_lead": by_lead(errors, batch.weight, mask.flatten(1)),
        }


class DiffusionObjective(Objective):
    r"""Trains a denoiser on perturbed windows of which some frames are known.

    A denoiser with `label_dropout` also learns to do without labels: that part of the samples,
    drawn at random, have their labels dropped.

    .. math:: \ell = \left\langle \frac{(\mu(x_t) - x)^2}{\mathbb{V}} \right\rangle
        = \left\langle (F - F^*)^2 \right\rangle \, ,
        \qquad F^* = \frac{x - c_\mathrm{skip} x_t}{c_\mathrm{out}}

    The second form is used: the target of the network has a closed form that subtracts nothing
    close, both where a frame is unknown, :math:`F^* = (\sigma x - \alpha z) / \sqrt{\nu}`, and
    where it is known and clean, :math:`F^* = \sigma x / (\alpha + \sqrt{\nu})`, with :math:`\nu =
    \alpha^2 + \sigma^2`.

    Arguments:
        model: The denoiser.
        precision: `fp32`, `bf16` or `fp16`.
        distribution: The law of times; see `TimePrior`.
        a: The first parameter of the law of times.
        b: The second parameter of the law of times.
        known_frames: Whether the loss counts the frames that the network is given.
        context: The options of the law of context masks; see `ContextLaw`.

    Raises:
        ValueError: A law is unknown or has a wrong option.
    """

    model: Denoiser

    def __init__(
        self,
        model: Denoiser,
        *,
        precision: str = "fp32",
        distribution: str = "uniform",
        a: float = 0.0,
        b: float = 1.0,
        known_frames: bool = True,
        **context: Any,
    ) -> None:
        super().__init__(model, precision)
        self.masks = ContextLaw(**context)
        self.times = TimePrior(distribution, a, b)
        self.known_frames = known_frames

    def forward(self, batch: BatchLike) -> tuple[Tensor, Scalars]:
        """Computes the loss of a batch.

        Arguments:
            batch: The batch, with B windows.

        Returns:
            The loss, a scalar, and what else was measured, by name.
        """
        x = batch.x
        u = draw_uniform(batch.seed, 5)
        mask = draw_masks(self.masks, x, u[:, :2])
        t = self.times.draw(u[:, 2:4]).float().to(x.device)
        noise = seeded_normal(batch.seed, x.shape[1:], x.device)
        keep_label = self._keep_label(u[:, 4])
        keep_label = None if keep_label is None else keep_label.to(x.device)

        alpha, sigma = (s.view(-1, *[1] * (x.ndim - 1)) for s in self.model.schedule(t))
        scale = torch.sqrt(alpha.square() + sigma.square())
        x_t = torch.where(mask, scale * x, alpha * x + sigma * noise)
        with self.autocast(x):
            q = self.model(x_t, t, mask=mask, label=batch.label, keep_label=keep_label)
        alpha, sigma, known = alpha.flatten(), sigma.flatten(), mask.flatten(1)
        errors = denoising_errors(q.output, x, noise, known, alpha, sigma)
        counted = torch.ones_like(known) if self.known_frames else ~known
        losses = torch.where(counted, errors, 0.0).sum(dim=1) / counted.sum(dim=1)
        loss = weighted_mean(losses, batch.weight)
        return loss, {
            "denoising": loss.detach(),
            "by_noise": by_noise(losses, batch.weight, alpha, sigma),
            "by_lead": by_lead(errors, batch.weight, known),
        }

    def _keep_label(self, u: Tensor) -> Tensor | None:
        """Whether each sample keeps its label, with shape (B,); None for all, as in validation."""
        dropout = self.model.label_dropout
        return u >= dropout if self.training and dropout else None


@torch.no_grad()
def frame_errors(x: Tensor, y: Tensor) -> Tensor:
    """Computes the mean squared error of each frame.

    Arguments:
        x: Windows, with shape (B, C, L, *S).
        y: Windows, with shape (B, C, L, *S).

    Returns:
        Errors, with shape (B, L).
    """
    return (x - y).square().transpose(1, 2).flatten(2).mean(dim=2)


def draw_uniform(seeds: Tensor, count: int) -> Tensor:
    """Draws numbers in [0, 1) from the samples' seeds.

    Arguments:
        seeds: The samples' seeds, with shape (B,).
        count: How many numbers are drawn from each seed.

    Returns:
        Numbers in float64, with shape (B, count).
    """
    return torch.from_numpy(uniform(seeds.numpy(), count))


def draw_masks(law: ContextLaw, x: Tensor, u: Tensor) -> Tensor:
    """Draws context masks of windows.

    Arguments:
        law: The law of the masks.
        x: Windows, with shape (B, C, L, *S).
        u: The samples' uniform numbers in [0, 1), with shape (B, 2).

    Returns:
        Masks, True where a frame is known, with shape (B, 1, L, 1, ...).
    """
    mask = draw_context_masks(law, x.shape[2], u).to(x.device)
    return mask.view(len(x), 1, -1, *[1] * (x.ndim - 3))
