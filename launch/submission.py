"""Jobs to Slurm, or to this machine: what is done or queued already is left alone."""

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
from launch.stages import Link
from lola_ds.log import logger

SCRIPT = "job.sh"
PATIENCE = 90.0  # seconds for a cancelled job to end


def show(links: Sequence[Link], cluster: Mapping[str, Any]) -> str:
    """The script, as it is; of a pipeline all of them, each under the command that submits it."""
    if len(links) == 1:
        return render(links[0].job, cluster, Path.cwd())
    parts = []
    for link in links:
        after = f" --dependency=afterok:<{'>:<'.join(link.needs)}>" if link.needs else ""
        command = f"# sbatch{after} {shlex.quote(str(link.job.folder / SCRIPT))}"
        parts.append(f"{command}\n{render(link.job, cluster, Path.cwd())}")
    return "\n".join(parts)


def submit(links: Sequence[Link], cluster: Mapping[str, Any]) -> list[str]:
    """Submits what is neither done nor queued, with its dependencies.

    Returns:
        The numbers of the new jobs.

    Raises:
        FileNotFoundError, ValueError, OSError: Slurm is missing, refuses or does not answer.
    """
    queue = _settled_queue(links)
    active: dict[str, list[str]] = {}
    new = []
    for link in links:
        job = link.job
        after = [number for need in link.needs for number in active.get(need, ())]
        queued = {i: task.queued(queue) for i, task in enumerate(job.tasks)}
        waiting = sorted({found[0] for found in queued.values() if found is not None})
        again = bool(after)  # what it needs is made anew, so it is too
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


def run_here(links: Sequence[Link], cluster: Mapping[str, Any]) -> int:
    """Runs what is not done, here and now; what needs a failed link is left out.

    Returns:
        0, or the status of the first link that failed.
    """
    status, failed, ran = 0, set(), set()
    for link in links:
        job = link.job
        if failed.intersection(link.needs):
            failed.add(job.name)
            logger.warning(f"{job.name}: not started, since what it needs has failed")
            continue
        again = bool(ran.intersection(link.needs))
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


def _settled_queue(links: Sequence[Link]) -> dict[str, list[tuple[str, str]]]:
    """The queue once none of these jobs is ending: only then is it gone, or to be run again."""
    tasks = [task for link in links for task in link.job.tasks]
    end, said = time.monotonic() + PATIENCE, False
    while True:
        queue = slurm.queue()
        found = [task.queued(queue) for task in tasks]
        ending = sorted({job[0] for job in found if job is not None and job[1] == "COMPLETING"})
        if not ending or time.monotonic() > end:
            return queue
        if not said:
            logger.info(f"job {', '.join(ending)} is ending; waiting for it")
            said = True
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
