"""The metrics of a run: `metrics.jsonl`, a progress bar, Weights & Biases, TensorBoard.

`metrics.jsonl` is the record. When a run resumes, lines after its checkpoint are removed, as their
steps are taken again; TensorBoard hides them.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lola_ds.atomic_io import write_atomic

__all__ = ["Tracker"]


class Tracker:
    """Records the metrics of a run. Does nothing on ranks other than the first.

    Arguments:
        folder: The run folder.
        config: The composed configuration.
        total: The number of samples of the whole training.
        done: The number of samples before this start.
        step: The optimizer step from which this start continues.
        enabled: Whether this is the first rank.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], total: int, done: int, step: int, enabled: bool
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a")
        self._wandb = _start_wandb(folder, config)
        self._tensorboard = _start_tensorboard(folder, step) if config["tensorboard"] else None
        self._postfix: dict[str, str] = {}
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=" samples",
            unit_scale=True,
            desc=config["task"],
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )

    def advance(self, samples: int, loss: float | None) -> None:
        """Moves the progress bar.

        Arguments:
            samples: The number of samples of the step.
            loss: The loss of the step; None if it was skipped.
        """
        if self.enabled:
            if loss is not None:
                self._postfix["loss"] = f"{loss:.4f}"
            self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.update(samples)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the metrics of an optimizer step."""
        if not self.enabled:
            return
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if "valid/loss" in values:
            self._postfix["valid"] = f"{values['valid/loss']:.4f}"
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step, line["time"])

    def close(self) -> None:
        """Closes the files and ends the progress bar."""
        if self.enabled:
            self._bar.close()
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()
            if self._tensorboard is not None:
                self._tensorboard.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the torn last line of a killed run
    write_atomic(path, "".join(kept))


def _start_tensorboard(folder: Path, step: int) -> Any:
    """A writer of event files, in which what was logged after `step` before is hidden."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(
        str(folder / "tensorboard"),
        purge_step=step + 1,
        flush_secs=10,
        filename_suffix=f".{step:09d}",  # two starts within a second have files of their own
    )


def _start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    settings = config["wandb"]
    if settings["mode"] == "disabled":
        return None
    import wandb

    identity = folder / "wandb" / "id"
    identity.parent.mkdir(parents=True, exist_ok=True)
    if not identity.is_file():
        identity.write_text(uuid.uuid4().hex[:8])
    return wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        id=identity.read_text().strip(),
        name=folder.name,
        dir=folder,
        mode=settings["mode"],
        resume="allow",
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
