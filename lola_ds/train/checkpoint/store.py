"""The checkpoints of one run: written while training goes on, complete or absent, the best kept.

A save goes through these states, the same on all ranks (`SaveState`):

- WRITING: A thread of every rank copies the rank's partitions to memory of the host, then writes,
  hashes and flushes its files in a hidden folder. The weights may change once they are copied
  (`wait_until_read`). Offloaded tensors (`lola_ds.train.zero.nvme_offload`) are not copied: they
  may change once they are written.
- PUBLISHING: The digests of all files are gathered. A thread of the first rank writes the manifest,
  renames the folder to `step_N`, points `latest` and `best` at the right ones and removes what need
  not be kept.
- IDLE: No save is under way.

States change in `poll` and `wait` alone, which are collective: the main thread of every rank calls
them at the same step. `busy` says that a rank's thread is at work, and the training loop sums it
with the numbers of its step.

A kill at any moment leaves the earlier checkpoints as they were and no part of a new one under its
name. `latest` and `best` are for people and tools: loading looks at the folders themselves.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lola_ds.atomic_io import fsync, replace_folder, write_atomic
from lola_ds.distributed import gather_objects
from lola_ds.log import logger
from lola_ds.train.checkpoint.format import (
    AVERAGES_FILE,
    CheckpointError,
    CheckpointReader,
    digest,
    list_checkpoints,
)
from lola_ds.train.checkpoint.rank_files import HostCopies, OffloadedTensors
from lola_ds.train.checkpoint.training_state import rank_contents
from lola_ds.train.ema import Ema
from lola_ds.train.zero.nvme_offload import NvmeStore
from lola_ds.train.zero.partitions import Partition

__all__ = ["CheckpointStore", "SaveState"]


class SaveState(Enum):
    """What the save under way is doing."""

    IDLE = auto()
    WRITING = auto()
    PUBLISHING = auto()


@dataclass(frozen=True)
class _Save:
    """The save under way.

    Attributes:
        name: The name of its folder, `step_N`.
        staging: The hidden folder in which it is written.
        progress: The contents of `state.json`.
        state: What it is doing.
        task: What this rank's thread does for it.
    """

    name: str
    staging: Path
    progress: dict[str, Any]
    state: SaveState
    task: Future[Any]


class CheckpointStore:
    """The checkpoints of one run. At most one save is under way.

    All methods but `wait_until_read` are collective.

    Arguments:
        folder: `RUN/checkpoints`.
        keep: How many of the newest to keep.
        rank: This rank.
        world_size: The number of ranks.
        asynchronous: Whether `save` returns before the checkpoint is complete.
        best: The number in the state's `valid` whose smallest value marks the best checkpoint,
            which is kept too; None for none.
        thin: The averages of checkpoints at multiples of so many steps are kept for good in
            `RUN/averages`; None for none.
        nvme: Where the states lie, if they are offloaded to one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        rank: int = 0,
        world_size: int = 1,
        *,
        asynchronous: bool = True,
        best: str | None = None,
        thin: int | None = None,
        nvme: NvmeStore | None = None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.rank = rank
        self.world_size = world_size
        self.asynchronous = asynchronous
        self.best = best
        self.thin = thin
        self._files = HostCopies() if nvme is None else OffloadedTensors(nvme)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: _Save | None = None

    def save(
        self,
        step: int,
        module: nn.Module,
        partitions: Sequence[Partition],
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        state: Mapping[str, Any],
    ) -> None:
        """Begins to write `step_N`, after waiting for the save before. Collective.

        Call `wait_until_read` before the weights, the averages or the optimizer's state change.

        Arguments:
            step: The number N.
            module: The objective.
            partitions: This rank's parts of the parameters.
            optimizer: The torch optimizer of the engine.
            ema: The averages of the same partitions.
            state: The progress of the training, JSON values.

        Raises:
            OSError: A rank could not write the save before, or this one if it is not asynchronous.
                All ranks raise it, and no trace of that save remains.
        """
        self.wait()
        contents = rank_contents(module, partitions, optimizer, ema, self.rank)
        name = f"step_{step:08d}"
        staging = self.folder / f".{name}.partial"
        self._agree(staging, lambda: _fresh_folder(staging) if self.rank == 0 else None)
        task = self._thread.submit(self._files.begin(staging, contents))
        self._under_way = _Save(name, staging, dict(state), SaveState.WRITING, task)
        if not self.asynchronous:
            self.wait()

    @property
    def state(self) -> SaveState:
        """What the save under way is doing; the same on all ranks."""
        return SaveState.IDLE if self._under_way is None else self._under_way.state

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._under_way is not None and not self._under_way.task.done()

    def wait_until_read(self) -> None:
        """Waits until the save under way no longer reads the weights. Not collective."""
        self._files.wait_until_read()

    def poll(self, busy: bool) -> None:
        """Takes the save under way to its next state, unless a rank is busy. Collective.

        Arguments:
            busy: Whether any rank was `busy`; the same on all ranks.

        Raises:
            OSError: The save under way failed on a rank.
        """
        if not busy:
            self._advance()

    def wait(self) -> None:
        """Waits until the save under way is complete. Collective.

        Raises:
            OSError: The save under way failed on a rank.
        """
        while self.state is not SaveState.IDLE:
            self._advance()

    def _advance(self) -> None:
        """WRITING -> PUBLISHING -> IDLE, when the threads of all ranks are done."""
        save, self._under_way = self._under_way, None
        if save is None:
            return
        results = self._agree(save.staging, save.task.result)
        if save.state is SaveState.WRITING:
            files = {name: digest for digests in results for name, digest in digests.items()}
            task = self._thread.submit(
                lambda: self._publish(save, files) if self.rank == 0 else None
            )
            self._under_way = replace(save, state=SaveState.PUBLISHING, task=task)

    def _agree(self, staging: Path, action: Callable[[], Any]) -> list[Any]:
        """Gathers the results of `action`; if a rank fails, the save is discarded."""
        try:
            return self._gather(action)
        except OSError:
            if self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def newest(self) -> CheckpointReader | None:
        """Opens the newest checkpoint that is not damaged. Collective; ranks share the reading.

        Damaged ones are skipped with a warning that names the file. Unfinished saves of earlier
        attempts are removed.

        Returns:
            The checkpoint, or None if the run has none.

        Raises:
            CheckpointError: All checkpoints are damaged.
        """
        self._gather(self._sweep if self.rank == 0 else lambda: None)
        folders = list_checkpoints(self.folder)
        for folder in reversed(folders):
            reader, fault = self._check(folder)
            faults = [fault for fault in self._gather(lambda fault=fault: fault) if fault]
            if reader is not None and not faults:
                return reader
            if folder == folders[0]:
                raise CheckpointError(
                    f"{faults[0]}, and there is no checkpoint before it; bring one back from a "
                    f"copy, or remove {self.folder} to start anew"
                )
            if self.rank == 0:
                logger.warning(f"{faults[0]}; falling back to the checkpoint before")
        return None

    def _check(self, folder: Path) -> tuple[CheckpointReader | None, str]:
        """Opens a checkpoint and verifies this rank's share of its files, or returns the fault."""
        try:
            reader = CheckpointReader(folder)
            reader.verify(sorted(reader.manifest["files"])[self.rank :: self.world_size])
        except CheckpointError as error:
            return None, str(error)
        return reader, ""

    def _publish(self, save: _Save, files: dict[str, Any]) -> None:
        """Completes a checkpoint, gives it its name and removes old ones."""
        _write_json(save.staging / "state.json", save.progress)
        files = {**files, "state.json": digest(save.staging / "state.json")}
        manifest = {"world_size": self.world_size, "files": files}
        _write_json(save.staging / "manifest.json", manifest)
        folder = self.folder / save.name
        replace_folder(save.staging, folder)
        self._point("latest", folder)
        best = self._find_best()
        if best is not None:
            self._point("best", best)
        self._prune(folder, best)

    def _point(self, pointer: str, folder: Path) -> None:
        path, text = self.folder.parent / pointer, f"{self.folder.name}/{folder.name}\n"
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)

    def _find_best(self) -> Path | None:
        """The checkpoint with the smallest finite value of `best`, if any has one."""
        scores = {folder: self._score(folder) for folder in list_checkpoints(self.folder)}
        best = min(scores, key=scores.__getitem__, default=None)
        return best if best is not None and math.isfinite(scores[best]) else None

    def _score(self, folder: Path) -> float:
        try:
            score = json.loads((folder / "state.json").read_text())["valid"][self.best]
        except (OSError, ValueError, KeyError):  # damaged, or saved without validation
            return math.inf
        return score if math.isfinite(score) else math.inf

    def _prune(self, newest: Path, best: Path | None) -> None:
        """Removes all but the newest and the best.

        Checkpoints after the newest are damaged: otherwise, training would have resumed there.
        """
        folders = list_checkpoints(self.folder)
        until = folders.index(newest) + 1
        kept = {*folders[max(0, until - self.keep) : until], best}
        for old in folders:
            if old in kept:
                continue
            if self.thin is not None and old < newest and _step(old) % self.thin == 0:
                _keep_averages(old, self.folder.parent / "averages" / old.name)
            doomed = old.with_name(f".{old.name}.old")  # never half a checkpoint under its name
            old.rename(doomed)
            shutil.rmtree(doomed)

    def _sweep(self) -> None:
        """Removes unfinished folders of killed attempts."""
        for folder in (self.folder, self.folder.parent / "averages"):
            for pattern in (".step_*.partial", ".step_*.old"):
                for left in folder.glob(pattern):
                    shutil.rmtree(left)

    def _gather(self, action: Callable[[], Any]) -> list[Any]:
        """Runs `action` on every rank and returns all results; one failure fails all ranks."""
        try:
            outcome: tuple[Any, str] = (action(), "")
        except Exception as error:
            outcome = (None, f"rank {self.rank}: {error}")
        outcomes = gather_objects(outcome)
        faults = [fault for _, fault in outcomes if fault]
        if faults:
            raise OSError(f"{self.folder}: the checkpoint could not be written ({faults[0]})")
        return [value for value, _ in outcomes]


def _keep_averages(checkpoint: Path, target: Path) -> None:
    """Keeps the averages of a checkpoint, as a folder of the same format."""
    if target.exists():
        return
    staging = target.with_name(f".{target.name}.partial")
    _fresh_folder(staging)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    kept = {
        name: value
        for name, value in manifest["files"].items()
        if name.startswith(AVERAGES_FILE) or name == "state.json"
    }
    for name in kept:
        _link(checkpoint / name, staging / name)
    _write_json(staging / "manifest.json", {**manifest, "files": kept})
    replace_folder(staging, target)


def _link(source: Path, target: Path) -> None:
    """Links a file, or copies it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        fsync(target)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def _fresh_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
