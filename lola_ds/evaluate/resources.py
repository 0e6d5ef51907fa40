"""The memory of an evaluation, and how many forecasts, members and states fit in it at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BatchSizes", "MemoryTerms", "Resources", "usable_share"]


@dataclass(frozen=True)
class MemoryTerms:
    """What each part of an evaluation takes.

    Attributes:
        windows: Bytes of the windows that a rollout of one forecast holds while it advances.
        advance: Bytes of the activations that advance one member by a window.
        lead: Bytes of the decoded states of one lead time of one forecast.
        scoring: Bytes of the temporary tensors that score one lead time of one forecast.
        decoding: Bytes of the activations that decode one state.
    """

    windows: int
    advance: int
    lead: int
    scoring: int
    decoding: int

    @classmethod
    def estimate(
        cls, members: int, state: int, decoding: int, window: int = 0, advance: int = 0
    ) -> MemoryTerms:
        """Estimates the terms.

        Arguments:
            members: The number of members M.
            state: Bytes of one state of all fields in float32.
            decoding: Bytes of the activations that decode one state.
            window: Bytes of one member's window, as the model holds it.
            advance: Bytes of the activations that advance one member by a window.
        """
        return cls(
            windows=4 * members * window,  # the last, its known part, the next and its parts
            advance=advance,
            lead=(members + 4) * state,  # members, truth, its reconstruction, two temporaries
            scoring=(8 * members + 64) * state,  # of the ensemble, and float64 spectra of a state
            decoding=decoding,
        )

    @property
    def least(self) -> int:
        """Bytes of one lead time of one forecast, computed one member and one state at a time."""
        return self.windows + max(self.advance, self.lead + max(self.scoring, self.decoding))


@dataclass(frozen=True)
class BatchSizes:
    """How much is computed at a time.

    Attributes:
        forecasts: Forecasts made side by side.
        members: Members through the model.
        leads: Lead times that are held decoded, of all members of one forecast.
        states: States through the autoencoder.
    """

    forecasts: int
    members: int
    leads: int
    states: int


@dataclass(frozen=True)
class Resources:
    """What an evaluation may use. The numbers do not depend on it, except for rounding.

    Arguments:
        batch: The most members through the model, and states through the autoencoder, at a time.
        memory: GB (10⁹ bytes) for all but the program and the weights.
    """

    batch: int = 16
    memory: float = 4.0

    def batch_sizes(self, members: int, terms: MemoryTerms, share: float = 1.0) -> BatchSizes:
        """Returns the batch sizes that fit in the memory.

        Forecasts fill a batch, unless their windows take more than a quarter of the memory. The
        model, then the decoder or the scores, use the rest in turn. Half of what one lead time
        leaves is for further lead times.

        Arguments:
            members: The number of members M.
            terms: What each part takes.
            share: The share of the memory to use.

        Raises:
            ValueError: One lead time of one forecast does not fit. The message says what would.
        """
        total = int(share * self.memory * 1e9)
        if total < terms.least:
            enough = terms.least / share / 1e9
            raise ValueError(
                f"memory={self.memory:g}: {members} members of one lead time take {enough:.2g} GB; "
                f"give memory={1.01 * enough:.2g} or more, or fewer members"
            )
        forecasts = max(1, self.batch // members)
        while forecasts > 1 and (
            4 * forecasts * terms.windows > total
            or total - (forecasts - 1) * terms.windows < terms.least
        ):
            forecasts -= 1
        left = total - forecasts * terms.windows
        spare = left - terms.lead - max(terms.scoring, terms.decoding)
        leads = 1 + spare // (2 * terms.lead)
        return BatchSizes(
            forecasts=forecasts,
            members=max(1, min(self.batch, left // max(1, terms.advance))),
            leads=leads,
            states=max(1, min(self.batch, (left - leads * terms.lead) // max(1, terms.decoding))),
        )


def usable_share(device: torch.device, compiled: bool = False) -> float:
    """Returns the share of the memory to use.

    On a CPU, activations are estimated only, and the allocator returns memory after each window. A
    CUDA graph keeps its memory while other work runs.
    """
    if device.type == "cuda":
        return 0.5 if compiled else 1.0
    return 0.4
