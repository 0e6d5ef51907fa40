r"""Sampling windows from a diffusion model, given the frames that are known.

Samplers are azula's. The state :math:`x_t` has the dtype of `x_1` and the network runs in float32.
At the highest noise the state is a thousand times larger than the data, so a float32 state carries
a rounding error of about 1e-5 of the data's scale to the end; a float64 `x_1` avoids it.

Shapes: B batch, C channels, L frames, *S spatial axes, D label features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from azula.denoise import DiracPosterior
from azula.noise import Schedule
from azula.sample import (
    DDIMSampler,
    DDPMSampler,
    HeunSampler,
    ItoSampler,
    PCSampler,
    Sampler,
    vABSampler,
    xEABSampler,
    zEABSampler,
)
from torch import Tensor, nn

from lola_ds.emulate.adams_bashforth import ABSampler
from lola_ds.models.denoiser import Denoiser

__all__ = ["SAMPLERS", "STOCHASTIC", "ConditionedDenoiser", "sample"]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ab": lambda denoiser, **options: ABSampler(denoiser, order=3, **options),
    "vab": lambda denoiser, **options: vABSampler(denoiser, order=3, **options),
    "eab": lambda denoiser, **options: zEABSampler(denoiser, order=3, **options),
    "xeab": lambda denoiser, **options: xEABSampler(denoiser, order=3, **options),
    "ddim": DDIMSampler,
    "heun": HeunSampler,
    "ddpm": DDPMSampler,
    "ito": ItoSampler,
    "pc": PCSampler,
}
"""Samplers by name.

Adams–Bashforth in sigma / alpha (`ab`) and in sigma / (alpha + sigma) (`vab`), exponential
Adams–Bashforth in log(sigma / alpha) predicting the noise (`eab`) or the data (`xeab`), all of
order 3; Euler (`ddim`); Heun (`heun`), which calls the network twice a step. Those that draw noise
at each step: ancestral (`ddpm`), Euler–Maruyama (`ito`), predictor-corrector (`pc`), which calls
the network twice.

azula's Rosenbrock sampler is left out: its step scales the integral by sqrt(alpha_s² + sigma_t²)
instead of sqrt(alpha_s² + sigma_s²), which makes it of order 1."""

STOCHASTIC = ("ddpm", "ito", "pc")
"""The samplers that draw noise at each step, for all windows of a batch together."""


class ConditionedDenoiser(nn.Module):
    r"""A denoiser of windows of which some values are known, as azula's samplers call it.

    With a `guidance_scale` :math:`w` other than 1, it applies classifier-free guidance: the mean is
    :math:`\mu_\varnothing + w (\mu_c - \mu_\varnothing)`, with the means of the network given the
    label :math:`c` and without it.

    Arguments:
        denoiser: The denoiser.
        mask: True where a value is known, broadcastable to the windows.
        x_obs: The known values, broadcastable to the windows; read where the mask is True.
        label: Labels, with shape (B, D).
        guidance_scale: The scale w: 1 is the conditional mean, 0 the unconditional one.

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), equation 6 with scale w - 1
        | https://arxiv.org/abs/2207.12598
    """

    schedule: Schedule

    def __init__(
        self,
        denoiser: Denoiser,
        mask: Tensor,
        x_obs: Tensor,
        label: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.mask, self.x_obs, self.label = mask, x_obs, label
        self.guidance_scale = guidance_scale

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
        """Computes the mean of p(x | x_t, known values).

        Arguments:
            x_t: Noisy windows, with shape (B, C, L, *S).
            t: The time, with shape ().

        Returns:
            The posterior, whose mean has the shape of `x_t`.
        """
        alpha_t, sigma_t = (s.to(x_t.dtype) for s in self.schedule(t))
        clean = torch.sqrt(alpha_t.square() + sigma_t.square()) * self.x_obs
        mean = self._mean(torch.where(self.mask, clean, x_t), t)
        return DiracPosterior(mean=torch.where(self.mask, self.x_obs, mean))

    def _mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        conditional = self.denoiser(x_t, t, mask=self.mask, label=self.label).mean
        if self.guidance_scale == 1:
            return conditional
        unconditional = self.denoiser(x_t, t, mask=self.mask, label=None).mean
        return torch.lerp(unconditional, conditional, self.guidance_scale)

    def known_frames(self) -> list[bool]:
        """Returns whether each of the L frames is known as a whole."""
        return self.mask.expand_as(self.x_obs).transpose(0, 2).flatten(1).all(dim=1).tolist()


Guiding = Callable[[ConditionedDenoiser], Any]
"""Makes a guided denoiser, as azula's samplers call it."""


@contextlib.contextmanager
def _noise_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Makes torch's global noise, which azula's samplers draw, come from a generator."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    mask: Tensor,
    x_obs: Tensor,
    label: Tensor | None = None,
    sampler: str = "ab",
    steps: int = 16,
    x_1: Tensor | None = None,
    generator: torch.Generator | None = None,
    guide: Guiding | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Draws windows given their known values.

    Arguments:
        denoiser: The denoiser.
        mask: True where a value is known, broadcastable to `x_obs`.
        x_obs: Windows, with shape (B, C, L, *S), read where the mask is True.
        label: Labels, with shape (B, D).
        sampler: The name of a sampler, one of `SAMPLERS`.
        steps: The number of steps.
        x_1: Windows of noise at time 1, with the shape of `x_obs`; drawn by default. Its dtype is
            that of the sampler's state.
        generator: The source of `x_1` and of the sampler's noise, on any device; torch's global
            one by default.
        guide: Turns the denoiser into one of p(x | x_t, y), y being observations; see
            `lola_ds.emulate.guidance`.
        guidance_scale: The scale of classifier-free guidance; other than 1, the denoiser should
            have been trained with `label_dropout`. See `ConditionedDenoiser`.

    Returns:
        Windows, with the shape and dtype of `x_obs`. Where the mask is True, they are the known
        values with the noise of the schedule's last time.

    Raises:
        ValueError: The sampler is unknown, the number of steps is not positive, or there is no
            label for classifier-free guidance.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler='{sampler}' is unknown; known: {', '.join(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps} should be at least 1")
    if guidance_scale != 1 and label is None:
        raise ValueError(f"guidance_scale={guidance_scale} needs a label")
    device = x_obs.device
    if x_1 is None:
        source = device if generator is None else generator.device
        noise = torch.randn(x_obs.shape, generator=generator, device=source).to(device)
        _, sigma_1 = denoiser.schedule(torch.ones((), device=device))
        x_1 = sigma_1 * noise
    known = torch.where(mask, x_obs, 0.0).to(x_1.dtype)
    conditioned = ConditionedDenoiser(denoiser, mask, known, label, guidance_scale)
    guided = conditioned if guide is None else guide(conditioned)
    solve = SAMPLERS[sampler](guided, steps=steps, silent=True, dtype=torch.float32)
    with _noise_from(generator, device):
        return solve(x_1).to(x_obs.dtype)
