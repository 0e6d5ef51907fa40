"""The attempt log of a job: when each attempt began and ended, and whether to try again.

    python -m launch.attempt_log begin FOLDER [--interface NAME]   prints ADDRESS:PORT of the ranks
    python -m launch.attempt_log end FOLDER STATUS [--retries N]   exits 0, 75 (try again) or STATUS

The batch script of a job calls these commands around `srun`. `FOLDER/attempts.jsonl` has one line
per event: `submit`, `begin` and `end`. An attempt without an end was killed from outside: by the
failure of a node, a preemption or `scancel`. The job is retried after a requested stop if the
attempt made progress, and after a failure if one of the last `retries` attempts made progress.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.address import find_address, find_port
from launch.supervisor import EXIT_LOST, EXIT_MISTAKE
from lola_ds.cli.common import fail
from lola_ds.train.stop import EXIT_STOPPED

__all__ = ["FILE", "attempts_without_progress", "begin", "end", "meeting_point", "read", "record"]

FILE = "attempts.jsonl"
REASONS = {
    0: "finished",
    EXIT_MISTAKE: "a mistake in the configuration or the data; see the log of rank 0",
    EXIT_STOPPED: "stopped on request and saved",
    EXIT_LOST: "a rank failed or was lost; see the end of the job's output",
}


def main(argv: Sequence[str]) -> None:
    """Runs the command of the batch scripts."""
    parser = argparse.ArgumentParser(prog="launch.attempt_log", description=__doc__)
    commands = parser.add_subparsers(dest="event", required=True)
    command = commands.add_parser("begin")
    command.add_argument("folder", type=Path)
    command.add_argument("--interface")
    command = commands.add_parser("end")
    command.add_argument("folder", type=Path)
    command.add_argument("status", type=int)
    command.add_argument("--retries", type=int, default=0)
    args = parser.parse_args(argv)
    if args.event == "begin":
        begin(args.folder)
        try:
            print(meeting_point(args.interface))
        except ValueError as error:
            end(args.folder, EXIT_MISTAKE, 0)
            fail(str(error))
    else:
        raise SystemExit(end(args.folder, args.status, args.retries))


def meeting_point(interface: str | None) -> str:
    """The `address:port` of this node where the ranks of this job meet."""
    return f"{find_address(interface)}:{find_port(int(os.environ.get('SLURM_JOB_ID', '0')))}"


def record(folder: Path, event: str, **details: Any) -> None:
    """Appends an event to the log.

    Arguments:
        folder: The folder of the log.
        event: `submit`, `begin` or `end`.
        details: Further values of the line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = {"event": event, "time": round(time.time(), 1), **details}
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Reads all events of the log, oldest first; none if there is no log.

    A line that a dying node left incomplete is skipped.
    """
    path, lines = folder / FILE, []
    for text in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def begin(folder: Path) -> None:
    """Records the start of an attempt, its time in the queue, and a missing end of the last one."""
    lines = read(folder)
    if lines and lines[-1]["event"] == "begin":
        reason = "ended from outside: node failure, time limit, preemption or scancel"
        record(folder, "end", job=lines[-1]["job"], status=None, reason=reason, step=_step(folder))
    waited = round(time.time() - lines[-1]["time"], 1) if lines else None
    record(
        folder,
        "begin",
        attempt=1 + sum(line["event"] == "begin" for line in lines),
        job=os.environ.get("SLURM_JOB_ID", "local"),
        pid=os.getpid(),
        nodes=os.environ.get("SLURM_JOB_NODELIST", os.uname().nodename),
        waited=waited,
        step=_step(folder),
    )


def end(folder: Path, status: int, retries: int) -> int:
    """Records the end of an attempt and decides what the batch script does next.

    Arguments:
        folder: The folder of the log, within the run folder.
        status: The status of `srun`.
        retries: The number of attempts in a row that may fail without progress. A requested stop
            counts as a failure if no step was done, since a time limit that is too short for a step
            would be reached in every attempt.

    Returns:
        0 (finished), `EXIT_STOPPED` (try again), or `status` (failed).
    """
    lines, step = read(folder), _step(folder)
    progress = [line["step"] for line in lines if line["event"] == "begin"][-1:] != [step]
    again = status not in (0, EXIT_MISTAKE) and (
        (status == EXIT_STOPPED and progress) or attempts_without_progress(lines, step) < retries
    )
    job = os.environ.get("SLURM_JOB_ID", "local")
    reason = _reason(status)
    if status == EXIT_STOPPED and not again:
        status, reason = EXIT_MISTAKE, "stopped before the first step each time; raise cluster.time"
    record(folder, "end", job=job, status=status, reason=reason, step=step, again=again)
    return EXIT_STOPPED if again else status


def attempts_without_progress(lines: Sequence[dict[str, Any]], step: int) -> int:
    """The number of consecutive attempts before the current one that made no progress, too.

    Arguments:
        lines: The events of the log; the last `begin` is that of the current attempt.
        step: The step of the newest checkpoint. If the current attempt began at an earlier step, it
            made progress and the number is 0.
    """
    begins = [line["step"] for line in lines if line["event"] == "begin"]
    count = 0
    for start in reversed(begins):
        if start != step:
            break
        count += 1
    return max(count - 1, 0)


def _reason(status: int) -> str:
    if status in REASONS:
        return REASONS[status]
    with suppress(ValueError):  # 128 + the number of a signal
        return f"a process was killed by {signal.Signals(status - 128).name}"
    return f"ended with status {status}"


def _step(folder: Path) -> int:
    """The step of the newest checkpoint of the run that contains `folder`, or 0."""
    try:
        return int((folder.parent / "latest").read_text().rpartition("_")[2])
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
