"""Slurm's commands: submitting a job and reading the queue."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["available", "queue", "submit"]

_CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
"""Variables that configure Slurm's commands; all others describe the surrounding job."""


def available() -> bool:
    """Whether Slurm's commands are installed on this machine."""
    return shutil.which("sbatch") is not None


def submit(script: Path, after: Sequence[str] = (), tasks: str | None = None) -> str:
    """Submits a script and returns the number of the job.

    Arguments:
        script: The batch script.
        after: The numbers of jobs that must succeed before; if one fails, this job is cancelled.
        tasks: The tasks of the array to submit, such as `1,3-5`. By default, all.

    Raises:
        FileNotFoundError: Slurm is not installed.
        ValueError: Slurm refuses the job.
    """
    if not available():
        raise FileNotFoundError(
            "sbatch is not installed here: submit from a login node, or add --local"
        )
    options = ["--parsable"]
    if after:
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    if tasks is not None:
        options.append(f"--array={tasks}")
    # Within a job, sbatch would take that job's resources as defaults.
    env = {k: v for k, v in os.environ.items() if k in _CLIENT or not k.startswith("SLURM")}
    command = ["sbatch", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise ValueError(f"Slurm refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]  # "number;cluster" where clusters are federated


def queue() -> dict[str, list[tuple[str, str]]]:
    """Reads the user's queued and running jobs: the (task, state) pairs of each job number.

    Returns an empty dictionary without Slurm.

    Raises:
        OSError: Slurm does not answer.
    """
    if not available():
        return {}
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}"]
    done = subprocess.run(
        [*command, "--format=%F %K %T"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"squeue: {done.stderr.strip()}")
    jobs: dict[str, list[tuple[str, str]]] = {}
    for line in done.stdout.splitlines():
        number, task, state = line.split()
        jobs.setdefault(number, []).append((task, state))
    return jobs
