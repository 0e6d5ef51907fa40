"""What is submitted: a job is one command, or an array of them, on some nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import attempt_log

FOLDER = "launch"
"""Folder of scripts, output and diary inside a task's folder."""


@dataclass(frozen=True)
class Task:
    """One command and the folder that belongs to it.

    Arguments:
        folder: the run folder of a training; any folder of its own for other commands.
        words: of the command.
    """

    folder: Path
    words: tuple[str, ...]

    @property
    def diary(self) -> Path:
        return self.folder / FOLDER

    def done(self) -> bool:
        """Whether this very command has finished here."""
        words, status = None, None
        for line in attempt_log.read(self.diary):
            if line["event"] == "submit":
                words, status = line["words"], None
            elif line["event"] == "end":
                status = line["status"]
        return status == 0 and words == list(self.words)

    def note_submission(self) -> None:
        """Notes what is about to be submitted."""
        attempt_log.record(self.diary, "submit", words=list(self.words))

    def note_job(self, number: str, index: int) -> None:
        """Notes the job that Slurm made of it, and this task's index in its array."""
        (self.diary / "job").write_text(f"{number} {index}\n")

    def queued(self, queue: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[str, str] | None:
        """Number and state of its job if that is in the queue (`slurm.queue`)."""
        if (job := self._job()) is None:
            return None
        number, index = job
        states = [state for task, state in queue.get(number, ()) if task in ("N/A", index)]
        return (number, states[0]) if states else None

    def outputs(self) -> list[Path]:
        """What its batch jobs said, oldest first; that of an array's task lies beside the array."""
        found = list(self.diary.glob("job_*.out"))
        if (job := self._job()) is not None:
            found += self.folder.parent.glob(f"{FOLDER}/job_*_{job[1]}.out")
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _job(self) -> list[str] | None:
        """Number and index that `note_job` wrote."""
        path = self.diary / "job"
        return path.read_text().split() if path.is_file() else None


@dataclass(frozen=True)
class Job:
    """One batch job.

    Arguments:
        name: for people.
        folder: of its script and output.
        command: of `lola-ds`.
        tasks: what runs; several make an array.
        nodes: for each task.
        gpus: on each node.
    """

    name: str
    folder: Path
    command: str
    tasks: Sequence[Task]
    nodes: int = 1
    gpus: int = 1

    @property
    def trains(self) -> bool:
        """Whether it runs on ranks, which DeepSpeed starts."""
        return self.command == "train"
