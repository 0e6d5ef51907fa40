"""Wall-clock time of work on a device."""

from __future__ import annotations

import time

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Measures the seconds between laps, each of which waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        """Returns the seconds since the last lap, or since the start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        last, self._last = self._last, time.perf_counter()
        return self._last - last
