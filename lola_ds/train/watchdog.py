"""Ending a rank that makes no progress, with the stack of each of its threads.

A collective that waits for a lost or stalled rank waits for ever. Every rank therefore has a clock
of its own, wound at every step; when it runs out, the interpreter's own watchdog (a thread without
the interpreter lock, so it works inside a stuck kernel or collective) writes the stacks to standard
error, which is the rank's log, and ends the process with status 1. All ranks of a stuck training
run out together, so all stacks are there to compare.
"""

from __future__ import annotations

import faulthandler
import sys
import time


class Watchdog:
    """A clock that ends the process unless it is wound in time.

    Arguments:
        seconds: how long a step, a validation batch or a checkpoint may take; 0 for ever.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._wound = float("-inf")

    def wind(self) -> None:
        """Starts the time anew, give or take one part in a hundred (it takes a new thread)."""
        now = time.monotonic()
        if self.seconds and now - self._wound > self.seconds / 100:
            self._wound = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.stderr)

    def stop(self) -> None:
        """Stops the clock."""
        if self.seconds:
            self._wound = float("-inf")
            faulthandler.cancel_dump_traceback_later()
