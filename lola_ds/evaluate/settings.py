"""Settings of forecasts; resources, and how they are shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lola_ds.emulate.guidance import Guidance

__all__ = ["Forecast", "Plan", "Resources", "planned_share"]


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


def planned_share(device: torch.device, compiled: bool = False) -> float:
    """The share of the memory to plan with: on a CPU, activations are but estimated, and freed
    memory is given back between windows only; a CUDA graph keeps its memory while other work goes
    on."""
    if device.type == "cuda":
        return 0.5 if compiled else 1.0
    return 0.4


@dataclass(frozen=True)
class Plan:
    """How much is done at a time.

    Attributes:
        forecasts: forecasts made side by side.
        members: members through the model.
        leads: lead times held decoded, of all members of one forecast.
        states: states through the autoencoder.
    """

    forecasts: int
    members: int
    leads: int
    states: int


# Working memory of scores, in states of all fields: per member of the ensemble, and of one state.
_ENSEMBLE, _STATE = 8, 64

# Windows of a member held while a rollout advances: the last, what is known, the next, its parts.
_WINDOWS = 4


@dataclass(frozen=True)
class Resources:
    """What an evaluation may use; the numbers do not depend on it, but for rounding.

    Arguments:
        batch: members through the model, and states through the autoencoder, at most at a time.
        memory: GB (10⁹ bytes) for everything but the program and the weights: windows, activations,
            decoded states and their scores.
    """

    batch: int = 16
    memory: float = 4.0

    def plan(
        self,
        members: int,
        state: int,
        decoding: int,
        window: int = 0,
        row: int = 0,
        share: float = 1.0,
    ) -> Plan:
        """Shares the memory out.

        As many forecasts are made side by side as fill a batch, unless their windows take more than
        a quarter of the memory. What windows leave is used in turn by the model, and by decoded
        states with what decodes or scores them; half of what these leave is for more lead times.

        Arguments:
            members: members of the ensemble.
            state: bytes of one state of all fields in float32.
            decoding: bytes that decoding one state takes.
            window: bytes of a member's window as the model holds it.
            row: bytes that advancing one member takes.
            share: of the memory that is planned with; the rest is for what allocators keep.

        Raises:
            ValueError: one lead time of one forecast does not fit; says what would do.
        """
        total = int(share * self.memory * 1e9)
        held = _WINDOWS * members * window
        scores, each = (_ENSEMBLE * members + _STATE) * state, (members + 4) * state
        least = held + max(row, each + max(scores, decoding))
        if total < least:
            enough = least / share / 1e9
            raise ValueError(
                f"memory={self.memory:g}: {members} members of one lead time take {enough:.2g} GB; "
                f"give memory={1.01 * enough:.2g} or more, or fewer members"
            )
        forecasts = max(1, self.batch // members)
        while forecasts > 1 and (
            4 * forecasts * held > total or total - forecasts * held < least - held
        ):
            forecasts -= 1
        left = total - forecasts * held
        leads = 1 + (left - each - max(scores, decoding)) // (2 * each)
        return Plan(
            forecasts,
            max(1, min(self.batch, left // max(1, row))),
            leads,
            max(1, min(self.batch, (left - leads * each) // max(1, decoding))),
        )
