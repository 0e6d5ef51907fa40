"""Steps that must not be taken: a loss or gradient that is not finite, or a gradient's spike.

Every rank knows before the optimizer step what all ranks found, since losses and gradient norms
travel in one sum. A bad step goes through DeepSpeed's bookkeeping with the update left out, so
weights, optimizer states and averages stay as they were, at every ZeRO stage.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lola_ds.data import Batch

_HISTORY = 64
_ENOUGH = 16


class AnomalyDetector:
    """Decides which steps are skipped, and when there have been too many in a row.

    Arguments:
        patience: skipped steps in a row after which training stops.
        spike: a gradient norm is a spike above this multiple of the recent median; None for never.
        state: the `state_dict` of an earlier detector.
    """

    def __init__(
        self, patience: int, spike: float | None = None, state: dict[str, Any] | None = None
    ) -> None:
        state = state or {}
        self.patience = patience
        self.spike = spike
        self.skipped = int(state.get("skipped", 0))
        self.in_a_row = 0
        self._norms: deque[float] = deque(state.get("norms", []), maxlen=_HISTORY)

    def judge(self, loss: float, norm: float) -> str:
        """Why the step with this loss and gradient norm must be skipped; empty if it is good."""
        reason = ""
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(norm):
            reason = f"the gradient norm is {norm}"
        elif self.spike is not None and len(self._norms) >= _ENOUGH:
            usual = statistics.median(self._norms)
            if norm > self.spike * usual:
                reason = f"the gradient norm {norm:.3g} is a spike over its median {usual:.3g}"
        if reason:
            self.skipped += 1
            self.in_a_row += 1
        else:
            self.in_a_row = 0
            self._norms.append(norm)
        return reason

    @property
    def exhausted(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.in_a_row >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide alike."""
        return {"skipped": self.skipped, "norms": list(self._norms)}


class AnomalyLocator:
    """What each rank saw in the batches of a step, to say afterwards where a fault began.

    Arguments:
        rank: this rank.
        fields: names of the channels.
    """

    def __init__(self, rank: int, fields: Sequence[str]) -> None:
        self.rank = rank
        self.fields = list(fields)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forget(self) -> None:
        """Starts a new step."""
        self._seen.clear()

    def see(self, batch: Batch, loss: Tensor) -> None:
        """Notes a standardised micro-batch and its loss, without waiting for the device."""
        finite = torch.isfinite(batch.x.flatten(2).sum(dim=2))  # one pass over the batch
        self._seen.append((batch.window, finite, torch.isfinite(loss.detach())))

    def tell(self) -> str:
        """Names the rank's windows and fields that are not finite, or whose loss is not."""
        faults = []
        for windows, finite, healthy in self._seen:
            for window, row in zip(windows.tolist(), finite.tolist()):
                bad = [name for name, good in zip(self._names(len(row)), row) if not good]
                if bad:
                    faults.append(f"window {window}, field {', '.join(bad)}")
            if not healthy and finite.all():
                faults.append(f"loss of windows {windows.tolist()}, whose fields are finite")
        return f"rank {self.rank}: {'; '.join(faults)}" if faults else ""

    def windows(self) -> list[int]:
        """All window ids of the step on this rank."""
        return [window for windows, *_ in self._seen for window in windows.tolist()]

    def _names(self, channels: int) -> list[str]:
        """The channels' names; latents have numbers."""
        return self.fields if len(self.fields) == channels else [str(c) for c in range(channels)]
