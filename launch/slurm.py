"""The three things asked of Slurm: take a job, say what is queued, cancel."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def available() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("sbatch") is not None


def submit(script: Path, after: Sequence[str] = (), tasks: Sequence[int] | None = None) -> str:
    """Submits a script; returns the job's number.

    Arguments:
        script: the batch script.
        after: numbers of jobs that must succeed first; if one fails, this job is cancelled.
        tasks: of its array, if not all.

    Raises:
        FileNotFoundError: there is no sbatch here.
        ValueError: Slurm refused.
    """
    if not available():
        raise FileNotFoundError(
            "sbatch is not installed here: submit from a login node, or add --local"
        )
    options = ["--parsable"]
    if after:
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    if tasks is not None:
        options.append(f"--array={','.join(map(str, tasks))}")
    done = subprocess.run(
        ["sbatch", *options, str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"Slurm refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]  # "number;cluster" where clusters are federated


def queue() -> dict[str, list[tuple[str, str]]]:
    """My queued and running jobs: number -> (task, state) for every task; empty without Slurm.

    Raises:
        OSError: Slurm does not answer.
    """
    if not available():
        return {}
    words = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}"]
    done = subprocess.run(
        [*words, "--format=%F %K %T"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"squeue: {done.stderr.strip()}")
    jobs: dict[str, list[tuple[str, str]]] = {}
    for line in done.stdout.splitlines():
        number, task, state = line.split()
        jobs.setdefault(number, []).append((task, state))
    return jobs
