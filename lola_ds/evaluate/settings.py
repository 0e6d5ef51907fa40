"""The settings of forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lola_ds.emulate.guidance import Guidance

__all__ = ["Forecast"]


@dataclass(frozen=True)
class Forecast:
    """How an emulator is run.

    Arguments:
        steps: states to emulate.
        members: members of the ensemble; a surrogate has one.
        start: first known frame, or several: a forecast from each.
        context: known states.
        overlap: states a window shares with the one before.
        sampler: a denoiser's sampler.
        sampling_steps: its number of steps.
        seed: of a denoiser's noise; each (trajectory, start, member) has its own.
        guidance: how a denoiser is guided by observations of the truth at all lead times, whose
            noise is drawn from the seed too.
        guidance_scale: of a denoiser's label; see `lola_ds.emulate.sample`.
    """

    steps: int = 8
    members: int = 8
    start: int | Sequence[int] = 0
    context: int = 1
    overlap: int = 1
    sampler: str = "ab"
    sampling_steps: int = 16
    seed: int = 0
    guidance: Guidance | None = None
    guidance_scale: float = 1.0

    @property
    def starts(self) -> list[int]:
        """The first known frames."""
        return [self.start] if isinstance(self.start, int) else list(self.start)

    def settings(self, generative: bool) -> dict[str, Any]:
        """What the numbers of one forecast depend on; a surrogate has neither noise nor members."""
        names = ["steps", "context", "overlap"]
        if generative:
            names = ["sampler", "sampling_steps", "members", *names, "seed"]
        given = {name: getattr(self, name) for name in names}
        if self.guidance_scale != 1:
            given["guidance_scale"] = self.guidance_scale
        return given if self.guidance is None else {**given, "guidance": self.guidance.describe()}

    def name(self, generative: bool) -> str:
        """The name of these settings: `ab16-members8-steps8`, and what else is not the default."""
        parts = [f"steps{self.steps}"]
        if generative:
            parts = [f"{self.sampler}{self.sampling_steps}", f"members{self.members}", *parts]
        usual = Forecast().settings(generative)
        for key in ("context", "overlap", "seed"):
            if key in usual and getattr(self, key) != usual[key]:
                parts.append(f"{key}{getattr(self, key)}")
        if self.guidance_scale != 1:
            parts.append(f"label{self.guidance_scale}")
        if self.guidance is not None:
            parts.append(_guidance_name(self.guidance))
        return "-".join(parts)


def _guidance_name(guidance: Guidance) -> str:
    """mmps_subsample_every8, and what else is not the default."""
    return "_".join(
        value if isinstance(value, str) else f"{key}{value}"
        for key, value in guidance.describe().items()
        if key == "method" or value != getattr(Guidance, key, None)
    )
