"""The checkpoints of one run: written off the critical path, complete or absent, the best kept.

A save goes through three phases, each on a thread while training goes on:

1. Every rank copies its partitions to memory of the host (`settle` waits for that; the weights may
   change afterwards), then writes, hashes and flushes its files in a hidden folder. What lies on a
   drive (`lola_ds.train.zero.nvme_offload`) is not copied: `settle` waits until it is written.
2. When all ranks have written, their digests are gathered and the first rank writes the manifest,
   renames the folder to `step_N`, points `latest` and `best` at the right ones and removes what
   need not be kept.
3. When that is done, all ranks hear of it.

Between the phases lies a collective, on the main thread of every rank at the same step: `busy`
says that a rank is not there yet, and the training loop sums it with the numbers of its step. A
kill at any moment leaves the earlier checkpoints as they were and no part of a new one under its
name. `latest` and `best` are for people and tools; loading looks at the folders themselves.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from lola_ds.train.checkpoint.tensor_file import LazyTensors, Spec, as_bytes, write_tensors
from lola_ds.train.checkpoint.training_state import Content, rank_contents
from lola_ds.train.ema import Ema
from lola_ds.train.zero.nvme_offload import Drive
from lola_ds.train.zero.partitions import Partition


class CheckpointStore:
    """The checkpoints of one run. At most one save is under way.

    Arguments:
        folder: `RUN/checkpoints`.
        keep: how many of the newest to keep.
        rank: this rank.
        world_size: the number of ranks. All methods but `settle` are collective when it is above 1.
        asynchronous: whether `save` returns before the checkpoint is complete.
        best: the number in the state's `valid` whose smallest value marks the best checkpoint,
            which is kept too; None for none.
        thin: of checkpoints at multiples of so many steps, the averages are kept for good in
            `RUN/averages`; None for none.
        drive: where the states lie, if they are offloaded to one.
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
        drive: Drive | None = None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.rank = rank
        self.world_size = world_size
        self.asynchronous = asynchronous
        self.best = best
        self.thin = thin
        self._source = _HostCopies() if drive is None else _OnDrive(drive)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._phases: Iterator[Future[Any]] = iter(())
        self._task: Future[Any] | None = None

    def save(
        self,
        step: int,
        module: nn.Module,
        partitions: Sequence[Partition],
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        state: Mapping[str, Any],
    ) -> None:
        """Begins to write `step_N`, after finishing the save before. Collective.

        Call `settle` before anything changes the weights, the averages or the optimizer's state.

        Raises:
            OSError: on every rank, if any rank could not write; no trace of the attempt remains.
                Of this save only if it is not asynchronous.
        """
        self.finish()
        contents = rank_contents(module, partitions, optimizer, ema, self.rank)
        self._phases = self._save(f"step_{step:08d}", contents, dict(state))
        self.proceed()
        if not self.asynchronous:
            self.finish()

    @property
    def pending(self) -> bool:
        """Whether a save is under way; the same on all ranks."""
        return self._task is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work on it; if none is, call `proceed`."""
        return self._task is not None and not self._task.done()

    def settle(self) -> None:
        """Waits until the save under way no longer reads the weights."""
        self._source.settle()

    def proceed(self) -> None:
        """Takes the save under way, if there is one, to its next phase. Collective.

        Waits for this rank's thread, and for ranks whose threads are still busy.

        Raises:
            OSError: as `save`, of the save under way.
        """
        self._task = None
        self._task = next(self._phases, None)

    def finish(self) -> None:
        """Ends the save under way, if there is one. Collective.

        Raises:
            OSError: as `save`, of the save under way.
        """
        while self.pending:
            self.proceed()

    def newest(self) -> CheckpointReader | None:
        """The newest checkpoint that verifies, or None. Collective; ranks share the reading.

        A damaged one is skipped with a message that names the file. What earlier attempts left
        unfinished is removed.

        Raises:
            CheckpointError: there are checkpoints, all of them damaged.
        """
        self._on_first_rank(self._sweep)
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
        """Opens a checkpoint and verifies this rank's share of its files; or says what is wrong."""
        try:
            reader = CheckpointReader(folder)
            reader.verify(sorted(reader.manifest["files"])[self.rank :: self.world_size])
        except CheckpointError as error:
            return None, str(error)
        return reader, ""

    def _save(
        self, name: str, contents: Mapping[str, Content], state: dict[str, Any]
    ) -> Iterator[Future[Any]]:
        """The phases of a save; ends each with the task to wait for before the next."""
        staging = self.folder / f".{name}.partial"
        try:
            self._on_first_rank(lambda: _fresh_folder(staging))
            writing = self._thread.submit(self._source.begin(staging, contents))
            yield writing
            files = {k: v for digests in self._gather(writing.result) for k, v in digests.items()}
            publishing = self._thread.submit(
                lambda: self._publish(staging, name, files, state) if self.rank == 0 else None
            )
            yield publishing
            self._gather(publishing.result)
        except OSError:
            if self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def _publish(
        self, staging: Path, name: str, files: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Completes what all ranks have written, makes it visible and removes what is old."""
        _write_json(staging / "state.json", state)
        files = {**files, "state.json": digest(staging / "state.json")}
        _write_json(staging / "manifest.json", {"world_size": self.world_size, "files": files})
        replace_folder(staging, self.folder / name)
        self._point("latest", self.folder / name)
        best = self._find_best()
        if best is not None:
            self._point("best", best)
        self._prune(self.folder / name, best)

    def _point(self, pointer: str, folder: Path) -> None:
        path, text = self.folder.parent / pointer, f"{self.folder.name}/{folder.name}\n"
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)

    def _find_best(self) -> Path | None:
        """The checkpoint with the smallest finite value of the chosen number, if any has one."""
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

        What lies after the newest is damaged, or training would have gone on from there.
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
        """Removes what killed attempts left behind."""
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

    def _on_first_rank(self, action: Callable[[], Any]) -> None:
        self._gather(action if self.rank == 0 else lambda: None)


class _HostCopies:
    """Tensors in the host's memory, which is kept from one save to the next.

    Copies from a GPU run on a stream of their own, into pinned memory.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._settled = Event()
        self._settled.set()

    def begin(self, staging: Path, contents: Mapping[str, Content]) -> Callable[[], dict[str, Any]]:
        """Returns the writing, for a thread: of what the tensors hold once it was begun."""
        self._settled.clear()
        stream = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())

        def write() -> dict[str, Any]:
            try:
                with nullcontext() if stream is None else torch.cuda.stream(stream):
                    copies = {name: self._copy(content) for name, content in contents.items()}
                if stream is not None:
                    stream.synchronize()
            finally:
                self._settled.set()
            return _write(staging, copies)

        return write

    @torch.no_grad()
    def _copy(self, content: Content) -> Content:
        for key, tensor in content.tensors.items():
            copy = self._copies.get(key)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[key] = copy
            if tensor.is_cuda:
                copy.copy_(tensor, non_blocking=True)
            else:  # torch's OpenMP would start a second team here, which slows the first for good
                np.copyto(as_bytes(copy).numpy(), as_bytes(tensor).numpy())
        return Content({key: self._copies[key] for key in content.tensors}, content.metadata)

    def settle(self) -> None:
        """Waits for the copying to end."""
        self._settled.wait()


class _OnDrive:
    """Tensors on a drive, written from there, one at a time in the host's memory.

    Arguments:
        drive: the drive.
    """

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self._settled = Event()
        self._settled.set()

    def begin(self, staging: Path, contents: Mapping[str, Content]) -> Callable[[], dict[str, Any]]:
        """Returns the writing, for a thread. What is not on the drive is small, and copied now."""
        self._settled.clear()
        lazy = {name: self._read(content) for name, content in contents.items()}

        def write() -> dict[str, Any]:
            try:
                return _write(staging, lazy)
            finally:
                self._settled.set()

        return write

    def _read(self, content: Content) -> Content:
        tensors = {
            key: tensor if self.drive.holds(tensor) else tensor.detach().cpu().clone()
            for key, tensor in content.tensors.items()
        }
        shown: list[Tensor] = []

        def show(key: str) -> Tensor:
            if shown and self.drive.holds(shown[-1]):
                self.drive.put_away(shown.pop())
            shown.append(tensors[key])
            return tensors[key]

        specs = {key: Spec.of(tensor) for key, tensor in tensors.items()}
        return Content(LazyTensors(specs, show), content.metadata)

    def settle(self) -> None:
        """Waits for the writing to end."""
        self._settled.wait()


def _write(staging: Path, contents: Mapping[str, Content]) -> dict[str, Any]:
    """Writes the files of a rank; returns their digests."""
    return {
        name: write_tensors(staging / name, content.tensors, content.metadata)
        for name, content in contents.items()
    }


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
    """Gives a file a second name, or copies it where files have but one."""
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
