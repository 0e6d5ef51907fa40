"""Seconds, measured when the device is done."""

from __future__ import annotations

import time

import torch

__all__ = ["Clock"]


class Clock:
    """Seconds between laps; a GPU is waited for at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap, or since the clock was made."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        last, self._last = self._last, time.perf_counter()
        return self._last - last
