"""Runs jobs on this machine, without Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from launch import attempt_log
from launch.job import Job, Task
from launch.node import Node
from launch.script import job_environment
from lola_ds.train.stop import EXIT_STOPPED


def run(job: Job, cluster: Mapping[str, Any]) -> int:
    """Runs the tasks of a job one after another.

    Returns:
        0, or the status of the first task that failed; `EXIT_STOPPED` if it was asked to stop.

    Raises:
        ValueError: The job needs several nodes.
    """
    if job.nodes > 1:
        raise ValueError(f"compute.nodes={job.nodes}: only one node is possible without Slurm")
    os.environ.update(job_environment(job, cluster))
    for task in job.tasks:
        if status := _run_task(job, task, cluster["retries"]):
            return status
    return 0


def _run_task(job: Job, task: Task, retries: int) -> int:
    while True:
        attempt_log.begin(task.attempts)
        if job.trains:
            status = Node(job.gpus, task.folder / "logs").run(task.arguments)
        else:
            command = [sys.executable, "-m", "lola_ds.cli.main", job.command, *task.arguments]
            status = subprocess.run(command, check=False).returncode
        again = attempt_log.end(task.attempts, status, retries)
        if again != EXIT_STOPPED or status == EXIT_STOPPED:
            return again
