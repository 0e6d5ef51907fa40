"""The diary of a job: when each attempt began and ended, and why the next one is worth it.

    python -m launch.attempt_log begin FOLDER [--interface NAME]   prints ADDRESS:PORT of the ranks
    python -m launch.attempt_log end FOLDER STATUS [--retries N]   exits 0, 75 (try again) or STATUS

A job's batch script calls them around `srun`. `FOLDER/attempts.jsonl` holds one line per event:
`submit`, `begin` and `end`. An attempt that began and never ended was ended by others: a node that
failed, a preemption, `scancel`. Tries again after a stop on request that has brought the training
further, and after anything else as long as some attempt among the last `retries` has.
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

FILE = "attempts.jsonl"
REASONS = {
    0: "finished",
    EXIT_MISTAKE: "a mistake in the configuration or the data; see the log of rank 0",
    EXIT_STOPPED: "stopped on request and saved",
    EXIT_LOST: "a rank failed or was lost; see the end of the job's output",
}


def main(argv: Sequence[str]) -> None:
    """The command of the batch scripts."""
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
    """`address:port` where the ranks of this job meet, on this node."""
    return f"{find_address(interface)}:{find_port(int(os.environ.get('SLURM_JOB_ID', '0')))}"


def record(folder: Path, event: str, **details: Any) -> None:
    """Appends a line to the diary."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"event": event, "time": round(time.time(), 1), **details}
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines of the diary, oldest first; none if there is no diary.

    A line that a dying node has left half written is passed over.
    """
    path, lines = folder / FILE, []
    for text in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def begin(folder: Path) -> None:
    """Notes the start of an attempt, how long it waited, and the unexplained end of the last."""
    lines = read(folder)
    if lines and lines[-1]["event"] == "begin":
        reason = "ended by others: node failure, time limit, preemption or scancel"
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
    """Notes the end of an attempt; returns what the batch script does next.

    Arguments:
        folder: of the diary, in the run folder.
        status: of `srun`.
        retries: attempts that may fail in a row without progress. A stop on request fails too if
            no step was done: a limit that leaves no time for one would be met for ever.

    Returns:
        0 (finished), `EXIT_STOPPED` (another attempt), or `status` (failed for good).
    """
    lines, step = read(folder), _step(folder)
    further = [line["step"] for line in lines if line["event"] == "begin"][-1:] != [step]
    again = status not in (0, EXIT_MISTAKE) and (
        (status == EXIT_STOPPED and further) or fruitless(lines, step) < retries
    )
    job = os.environ.get("SLURM_JOB_ID", "local")
    reason = _reason(status)
    if status == EXIT_STOPPED and not again:
        status, reason = EXIT_MISTAKE, "always stopped before a step; raise cluster.time"
    record(folder, "end", job=job, status=status, reason=reason, step=step, again=again)
    return EXIT_STOPPED if again else status


def fruitless(lines: Sequence[dict[str, Any]], step: int) -> int:
    """How many earlier attempts, counted backwards from this one, saw no checkpoint after `step`.

    The current attempt is the last `begin`; it counts as fruitful, and the answer is 0, if `step`
    is beyond the one it began with.
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
    """The newest checkpoint's step of the run that `folder` lies in; 0 before the first."""
    try:
        return int((folder.parent / "latest").read_text().rpartition("_")[2])
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
