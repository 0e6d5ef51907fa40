"""The processes that share an evaluation, over GPUs and nodes, or one process on a CPU.

Any launcher that sets torch's variables (`accelerate launch`, `torchrun`, `deepspeed`, our Slurm
jobs) starts them; accelerate reads the variables and joins the process group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

__all__ = ["ALONE", "Processes", "join_processes"]

T = TypeVar("T")

# Processes wait for the slowest one at the end: longer than any of its units takes.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Arguments:
        index: its number, from 0.
        count: how many there are.
        state: accelerate's, when there are several.
    """

    index: int = 0
    count: int = 1
    state: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that merges and draws."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process: every `count`-th, so that neighbours go to different ones."""
        return list(items[self.index :: self.count])

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Leaves the process group."""
        if self.state is not None:
            self.state.destroy_process_group()


ALONE = Processes()
"""One process, without peers."""


def join_processes(device: str = "auto") -> tuple[Processes, torch.device]:
    """This process among those that the launcher started, and its device.

    Arguments:
        device: `cpu`, `cuda`, or `auto` (a GPU when there is one).

    Raises:
        ValueError: the device is unknown, or there is no GPU where one was asked for.
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

    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    where = state.device or torch.device(device)
    return Processes(state.process_index, state.num_processes, state), where
