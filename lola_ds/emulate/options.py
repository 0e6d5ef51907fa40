"""Options of the sampling of forecasts."""

from __future__ import annotations

from dataclasses import dataclass

from lola_ds.emulate.guidance import Guidance

__all__ = ["SamplingOptions"]


@dataclass(frozen=True)
class SamplingOptions:
    """How forecasts are sampled, whatever they start from.

    Arguments:
        steps: The number T of states to emulate.
        members: The number M of members of the ensemble. A surrogate has one answer for all.
        context: The number of known states at the start of the first window.
        overlap: The number of states that a later window shares with the one before.
        sampler: The name of a denoiser's sampler, one of `lola_ds.emulate.sampling.SAMPLERS`.
        sampling_steps: The number of steps of the sampler.
        seed: The seed of a denoiser's noise.
        guidance: How a denoiser is guided by observations of the states that it emulates.
        guidance_scale: The scale of a denoiser's classifier-free guidance; see
            `lola_ds.emulate.sample`.
    """

    steps: int = 8
    members: int = 1
    context: int = 1
    overlap: int = 1
    sampler: str = "ab"
    sampling_steps: int = 16
    seed: int = 0
    guidance: Guidance | None = None
    guidance_scale: float = 1.0
