"""Jobs: one command, or an array of them, on some nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import attempt_log

__all__ = ["FOLDER", "Job", "Task"]

FOLDER = "launch"
"""The folder of scripts, output and attempt log within the folder of a task."""


@dataclass(frozen=True)
class Task:
    """One command and its folder.

    Arguments:
        folder: The run folder of a training, or the task's own folder for other commands.
        arguments: The arguments of the command.
    """

    folder: Path
    arguments: tuple[str, ...]

    @property
    def attempts(self) -> Path:
        """The folder of the attempt log."""
        return self.folder / FOLDER

    def done(self) -> bool:
        """Whether this command, with the same arguments, has succeeded."""
        arguments, status = None, None
        for line in attempt_log.read(self.attempts):
            if line["event"] == "submit":
                arguments, status = line["words"], None
            elif line["event"] == "end":
                status = line["status"]
        return status == 0 and arguments == list(self.arguments)

    def note_submission(self) -> None:
        """Records in the attempt log that the task is about to be submitted."""
        attempt_log.record(self.attempts, "submit", words=list(self.arguments))

    def note_job(self, number: str, index: int) -> None:
        """Records the number of the Slurm job and the index of this task in its array."""
        (self.attempts / "job").write_text(f"{number} {index}\n")

    def queued(self, queue: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[str, str] | None:
        """The number and state of the task's job if it is in the queue (see `slurm.queue`)."""
        if (job := self._job()) is None:
            return None
        number, index = job
        states = [state for task, state in queue.get(number, ()) if task in ("N/A", index)]
        return (number, states[0]) if states else None

    def outputs(self) -> list[Path]:
        """The output files of the task's batch jobs, oldest first; arrays have a common folder."""
        found = list(self.attempts.glob("job_*.out"))
        if (job := self._job()) is not None:
            found += self.folder.parent.glob(f"{FOLDER}/job_*_{job[1]}.out")
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _job(self) -> list[str] | None:
        """The number and index that `note_job` wrote."""
        path = self.attempts / "job"
        return path.read_text().split() if path.is_file() else None


@dataclass(frozen=True)
class Job:
    """One batch job.

    Arguments:
        name: The name that users see.
        folder: The folder of the script and output.
        command: The command of `lola-ds`.
        tasks: The tasks; several make an array.
        nodes: The number of nodes per task.
        gpus: The number of GPUs per node.
    """

    name: str
    folder: Path
    command: str
    tasks: Sequence[Task]
    nodes: int = 1
    gpus: int = 1

    @property
    def trains(self) -> bool:
        """Whether the job is a training, whose ranks DeepSpeed starts."""
        return self.command == "train"
