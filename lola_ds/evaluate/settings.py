"""The settings of forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lola_ds.emulate.guidance import Guidance
from lola_ds.emulate.options import SamplingOptions

__all__ = ["Forecast"]


@dataclass(frozen=True)
class Forecast(SamplingOptions):
    """How an emulator is run: options of sampling, and where forecasts start.

    Each (trajectory, start, member) has its own noise, drawn from the seed. A guided denoiser sees
    observations of the truth at all lead times, whose noise is drawn from the seed too.

    Arguments:
        start: The first known frame, or several, with a forecast from each.
    """

    members: int = 8
    start: int | Sequence[int] = 0

    @property
    def starts(self) -> list[int]:
        """The first known frames."""
        return [self.start] if isinstance(self.start, int) else list(self.start)

    def settings(self, generative: bool) -> dict[str, Any]:
        """Returns what the numbers of one forecast depend on."""
        names = ["steps", "context", "overlap"]
        if generative:
            names = ["sampler", "sampling_steps", "members", *names, "seed"]
        given = {name: getattr(self, name) for name in names}
        if self.guidance_scale != 1:
            given["guidance_scale"] = self.guidance_scale
        return given if self.guidance is None else {**given, "guidance": self.guidance.describe()}

    def name(self, generative: bool) -> str:
        """Returns their name: `ab16-members8-steps8` and values that are not default."""
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
    """mmps_subsample_every8, and values that are not default."""
    return "_".join(
        value if isinstance(value, str) else f"{key}{value}"
        for key, value in guidance.describe().items()
        if key == "method" or value != getattr(Guidance, key, None)
    )
