"""The states of runs, read from their folders and from Slurm's queue."""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import yaml

from launch import attempt_log
from launch.job import FOLDER, Task
from lola_ds.train.stop import EXIT_STOPPED

__all__ = ["Run", "find_runs", "follow", "last_error", "read_run", "table", "tail"]

_DEPTH = 5
"""The number of folder levels that are searched for runs."""
_ERROR = re.compile(r"(Error|error|lola-ds: rank \d+)\b.*")


@dataclass(frozen=True)
class Run:
    """The state of a run.

    Attributes:
        folder: The run folder.
        state: `running`, `queued`, `complete`, `stopped`, `failed`, `lost` or a state of Slurm.
        done: The number of samples trained on.
        total: The number of samples of the whole training, or 0 if unknown.
        speed: The samples per second.
        attempts: The number of attempts.
        error: The last error, if the run has failed.
    """

    folder: Path
    state: str
    done: int
    total: int
    speed: float
    attempts: int
    error: str

    @property
    def left(self) -> float:
        """The remaining seconds at the current speed; infinite if it is unknown."""
        return (self.total - self.done) / self.speed if self.speed else float("inf")


def find_runs(root: Path) -> list[Path]:
    """Finds the folders in `root`, or `root` itself, that have an attempt log or metrics, sorted.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    found = []
    for folder, names, files in os.walk(root):
        path = Path(folder)
        if "metrics.jsonl" in files or (path / FOLDER / attempt_log.FILE).is_file():
            found.append(path)
        deep = len(path.relative_to(root).parts) >= _DEPTH
        names[:] = [] if deep else sorted(n for n in names if n not in _INSIDE and n[0] != ".")
    return found


_INSIDE = {FOLDER, "logs", "checkpoints", "tensorboard", "wandb"}


def read_run(folder: Path, queue: Mapping[str, Sequence[tuple[str, str]]]) -> Run:
    """Reads the state of a run; `queue` is the result of `launch.slurm.queue`."""
    config = _read_config(folder)
    train = config.get("train", {})
    total = train["epochs"] * train["epoch_size"] if train else 0
    step, speed = _last_metrics(folder)
    done = step * train["batch_size"] if train else 0
    lines = attempt_log.read(folder / FOLDER)
    state = _state(folder, lines, queue, bool(total) and done >= total)
    attempts = sum(line["event"] == "begin" for line in lines)
    ends = [line["status"] for line in lines if line["event"] == "end"]
    troubled = state in ("failed", "lost") or ends[-1:] not in ([], [0], [EXIT_STOPPED])
    error = last_error(folder) if troubled and attempts else ""
    return Run(folder, state, done, total, speed, attempts, error)


def table(runs: Sequence[Run], root: Path) -> str:
    """Formats runs as a text table; paths are relative to `root`."""
    columns = ["run", "state", "progress", "samples/s", "left", "attempts", "last error"]
    rows = pd.DataFrame([_row(run, root) for run in runs], columns=columns)
    widths = {name: rows[name].str.len().max() for name in columns}
    aligned: Any = {name: f"{{:<{width}}}".format for name, width in widths.items()}
    return rows.to_string(index=False, justify="left", formatters=aligned)


def _row(run: Run, root: Path) -> tuple[str, ...]:
    path = run.folder.relative_to(root) if run.folder.is_relative_to(root) else run.folder
    remaining = run.state in ("running", "queued") and run.total and run.speed
    return (
        str(path) if path.parts else run.folder.name,
        run.state,
        f"{run.done / run.total:.0%} of {run.total}" if run.total else "",
        f"{run.speed:.1f}" if run.speed else "",
        _duration(run.left) if remaining else "",
        str(run.attempts) if run.attempts else "",
        run.error[:100],
    )


def last_error(folder: Path) -> str:
    """The last line with an error in the logs of the ranks, or else in the output of the jobs."""
    logs = sorted(folder.glob("logs/rank_*.log"), key=lambda path: path.stat().st_mtime)
    for files in (logs, Task(folder, ()).outputs()):
        for path in reversed(files):
            for line in reversed(tail(path, 200)):
                if found := _ERROR.search(line):
                    return (line if len(line) < 200 else found[0]).strip()
    return ""


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file, with only the last state of a progress bar."""
    with path.open(errors="replace", newline="\n") as file:
        return _last_lines(file, lines)


def follow(path: Path, lines: int) -> Iterator[str]:
    """Yields the last lines of a file, then whatever is appended to it, without end."""
    with path.open(errors="replace", newline="\n") as file:
        yield "\n".join([*_last_lines(file, lines), ""])
        while True:
            if piece := file.read():
                yield piece
            else:
                time.sleep(0.5)


def _last_lines(file: TextIO, lines: int) -> list[str]:
    last = deque(file, maxlen=lines)
    return [line.rstrip("\r\n").rpartition("\r")[2] for line in last]


def _state(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    queue: Mapping[str, Sequence[tuple[str, str]]],
    complete: bool,
) -> str:
    if found := Task(folder, ()).queued(queue):
        return "queued" if found[1] == "PENDING" else found[1].lower()
    last = lines[-1] if lines else {"event": None}
    if last["event"] == "begin":
        return "running" if _alive(last) else "lost"
    if last["event"] == "submit":
        return "never started"
    if last["event"] == "end" and last["status"] != 0:
        return "stopped" if last.get("again") else "failed" if last["status"] else "lost"
    return "complete" if complete or last["event"] == "end" else "stopped"


def _alive(line: Mapping[str, Any]) -> bool:
    """Whether an attempt outside of Slurm still runs."""
    return line["job"] == "local" and Path(f"/proc/{line['pid']}").exists()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) if path.is_file() else None
    return config if isinstance(config, dict) else {}


def _last_metrics(folder: Path) -> tuple[int, float]:
    """The last step and the last known samples per second."""
    path = folder / "metrics.jsonl"
    step, speed = 0, 0.0
    if path.is_file():
        for text in tail(path, 50):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # incomplete line
            step, speed = line["step"], line.get("samples_per_second", speed)
    return step, speed


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
