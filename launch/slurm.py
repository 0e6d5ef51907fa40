"""What is asked of Slurm: to take a job, and to say what is queued."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
"""Variables that tell Slurm's commands where it is, and not about a job."""


def available() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("sbatch") is not None


def submit(script: Path, after: Sequence[str] = (), tasks: str | None = None) -> str:
    """Submits a script; returns the job's number.

    Arguments:
        script: the batch script.
        after: numbers of jobs that must succeed first; if one fails, this job is cancelled.
        tasks: of its array, such as `1,3-5`, if not all.

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
        options.append(f"--array={tasks}")
    # Inside another job, its own resources would be taken for those of the new one.
    env = {k: v for k, v in os.environ.items() if k in _CLIENT or not k.startswith("SLURM")}
    words = ["sbatch", *options, str(script)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
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
