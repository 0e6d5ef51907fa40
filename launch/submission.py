"""Submits jobs to Slurm or runs them here, except for those that are done or queued."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import local, slurm
from launch.job import Job
from launch.script import limit, render
from launch.stages import PipelineStage
from lola_ds.log import logger

__all__ = ["run_here", "show", "submit"]

SCRIPT = "job.sh"
ENDING_SECONDS = 90.0
"""How long to wait for a cancelled job to end."""


def show(stages: Sequence[PipelineStage], cluster: Mapping[str, Any]) -> str:
    """Renders the script of a job, or those of a pipeline with the commands to submit them."""
    if len(stages) == 1:
        return render(stages[0].job, cluster, Path.cwd())
    parts = []
    for stage in stages:
        after = f" --dependency=afterok:<{'>:<'.join(stage.needs)}>" if stage.needs else ""
        command = f"# sbatch{after} {shlex.quote(str(stage.job.folder / SCRIPT))}"
        parts.append(f"{command}\n{render(stage.job, cluster, Path.cwd())}")
    return "\n".join(parts)


def submit(stages: Sequence[PipelineStage], cluster: Mapping[str, Any]) -> list[str]:
    """Submits the jobs that are neither done nor queued, with their dependencies.

    Returns:
        The numbers of the new jobs.

    Raises:
        FileNotFoundError: Slurm is not installed.
        ValueError: Slurm refuses a job.
        OSError: Slurm does not answer.
    """
    queue = _settled_queue(stages)
    active: dict[str, list[str]] = {}
    new = []
    for stage in stages:
        job = stage.job
        after = [number for need in stage.needs for number in active.get(need, ())]
        queued = {i: task.queued(queue) for i, task in enumerate(job.tasks)}
        waiting = sorted({found[0] for found in queued.values() if found is not None})
        again = bool(after)  # its inputs are made again
        todo = [
            i
            for i, task in enumerate(job.tasks)
            if queued[i] is None and (again or not task.done())
        ]
        if waiting:
            states = ", ".join(sorted({found[1] for found in queued.values() if found is not None}))
            logger.info(f"{job.name}: in the queue as job {', '.join(waiting)} ({states})")
        active[job.name] = waiting
        if todo:
            number = _submit_job(job, cluster, after, todo)
            active[job.name] = [*waiting, number]
            new.append(number)
            some = f", tasks {','.join(map(str, todo))}" if len(todo) < len(job.tasks) else ""
            logger.info(f"{job.name}: job {number}{some}")
        elif not waiting:
            logger.info(f"{job.name}: done already, nothing to do")
            del active[job.name]
    return new


def run_here(stages: Sequence[PipelineStage], cluster: Mapping[str, Any]) -> int:
    """Runs the jobs that are not done on this machine; skips those whose inputs failed.

    Returns:
        0, or the status of the first job that failed.
    """
    status, failed, ran = 0, set(), set()
    for stage in stages:
        job = stage.job
        if failed.intersection(stage.needs):
            failed.add(job.name)
            logger.warning(f"{job.name}: not started, since a stage that it needs has failed")
            continue
        again = bool(ran.intersection(stage.needs))
        todo = [task for task in job.tasks if again or not task.done()]
        if not todo:
            logger.info(f"{job.name}: done already, nothing to do")
            continue
        ran.add(job.name)
        _write_script(job, cluster)
        for task in todo:
            task.note_submission()
        if code := local.run(replace(job, tasks=todo), cluster):
            logger.warning(f"{job.name}: ended with status {code}")
            failed.add(job.name)
            status = status or code
    return status


def _settled_queue(stages: Sequence[PipelineStage]) -> dict[str, list[tuple[str, str]]]:
    """The queue, after waiting for jobs that are ending: they may disappear or be requeued."""
    tasks = [task for stage in stages for task in stage.job.tasks]
    end, told = time.monotonic() + ENDING_SECONDS, False
    while True:
        queue = slurm.queue()
        found = [task.queued(queue) for task in tasks]
        ending = sorted({job[0] for job in found if job is not None and job[1] == "COMPLETING"})
        if not ending or time.monotonic() > end:
            return queue
        if not told:
            logger.info(f"job {', '.join(ending)} is ending; waiting for it")
            told = True
        time.sleep(1)


def _submit_job(
    job: Job, cluster: Mapping[str, Any], after: Sequence[str], todo: Sequence[int]
) -> str:
    script = _write_script(job, cluster)
    for i in todo:
        job.tasks[i].note_submission()
    some = f"{','.join(map(str, todo))}{limit(cluster)}" if len(todo) < len(job.tasks) else None
    number = slurm.submit(script, after, some)
    for i in todo:
        job.tasks[i].note_job(number, i)
    return number


def _write_script(job: Job, cluster: Mapping[str, Any]) -> Path:
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / SCRIPT
    path.write_text(render(job, cluster, Path.cwd()))
    path.chmod(0o755)
    return path
