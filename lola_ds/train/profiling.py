"""A window of steps under torch's profiler, as a Chrome trace for each rank."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def parse_window(text: str | None) -> range:
    """The steps of `10-15`: 10 to 14; none for None.

    Raises:
        ValueError: it is not of this form.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"profile.steps={text}: expected FIRST-END, such as 10-15, END not included"
        )
    return range(int(match[1]), int(match[2]))


class Profiler:
    """Profiles the steps of a window; the trace opens in chrome://tracing or Perfetto.

    Arguments:
        window: the steps.
        folder: where `trace_rank_N.json.gz` goes.
        rank: this rank.
    """

    def __init__(self, window: range, folder: Path, rank: int) -> None:
        self.window = window
        self.path = folder / f"trace_rank_{rank:05d}.json.gz"
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Starts when `step` is the first of the window that this start of the run takes."""
        if self._profile is None and step in self.window:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()

    def after(self, step: int) -> None:
        """Writes the trace once `step` was the last of the window."""
        if self._profile is not None and step + 1 >= self.window.stop:
            self._profile.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
            self._profile = None
            self.window = range(0)
