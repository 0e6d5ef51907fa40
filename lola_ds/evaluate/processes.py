"""The processes that share an evaluation, over GPUs and nodes.

Any launcher that sets torch's variables (`accelerate launch`, `torchrun`, `deepspeed`, our Slurm
jobs) starts them. Accelerate reads the variables and joins the process group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

__all__ = ["SINGLE_PROCESS", "Processes", "join_processes"]

T = TypeVar("T")

# Processes wait for the slowest one at the end: longer than any of its units takes.
_TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Arguments:
        index: The index of this process.
        count: The number of processes.
        state: Accelerate's state, if there are several.
    """

    index: int = 0
    count: int = 1
    state: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that merges and draws."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Returns every `count`-th item, so that neighbours go to different processes."""
        return list(items[self.index :: self.count])

    def wait(self) -> None:
        """Waits until all processes have called this."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Leaves the process group."""
        if self.state is not None:
            self.state.destroy_process_group()


SINGLE_PROCESS = Processes()
"""One process, without peers."""


def join_processes(device: str = "auto") -> tuple[Processes, torch.device]:
    """Joins the processes that the launcher started.

    Arguments:
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Returns:
        This process and its device.

    Raises:
        ValueError: The device is unknown, or `cuda` without a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device} is unknown; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no GPU is visible here; choose device=cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(), torch.device(device)
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=_TIMEOUT)
    where = state.device or torch.device(device)
    return Processes(state.process_index, state.num_processes, state), where
