"""A job as a batch script: plain, readable, complete, to be submitted by hand if one likes.

Everything that comes from the user is quoted for whoever reads it: the shell in commands, sbatch
in its directives, which are comments to the shell.
"""

from __future__ import annotations

import getpass
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.job import FOLDER, Job, Task


def render(job: Job, cluster: Mapping[str, Any], directory: Path) -> str:
    """The script of a job.

    Arguments:
        job: what runs.
        cluster: the configuration group `cluster`.
        directory: where relative paths start.

    Raises:
        ValueError: a value that no Slurm option has, or a path that sbatch cannot take.
    """
    parts = [
        ["#!/usr/bin/env bash", f"# {job.name}: lola-ds {job.command}, by lola-ds submit"],
        [f"#SBATCH {text}" for text in directives(job, cluster, directory)],
        ["# shellcheck disable=SC2016  # words are meant as they stand", "set -u"],
        list(_modules(cluster["modules"])),
        [f"export {k}={shlex.quote(v)}" for k, v in job_environment(job, cluster).items()],
        list(_tasks(job.tasks)),
        list(_body(job, cluster)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def directives(job: Job, cluster: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """The options of sbatch, one a line."""
    yield f"--job-name={_directive('job name', job.name)}"
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if cluster[key] is not None:
            yield f"--{key}={_name(f'cluster.{key}', cluster[key])}"
    if len(job.tasks) > 1:
        yield f"--array=0-{len(job.tasks) - 1}" + limit(cluster)
    yield f"--nodes={job.nodes}"
    yield "--ntasks-per-node=1"
    yield from _gpus(job, cluster)
    yield f"--cpus-per-task={_cpus(job, cluster)}"
    if cluster["memory"] is not None:
        yield f"--mem={_name('cluster.memory', cluster['memory'])}"
    yield f"--time={_name('cluster.time', cluster['time'])}"
    if job.trains:
        yield f"--signal={cluster['signal']}@{cluster['warning']}"
    yield "--requeue"
    yield "--open-mode=append"
    yield f"--chdir={_directive('the current folder', str(directory))}"
    number = "%A_%a" if len(job.tasks) > 1 else "%j"
    folder = _directive("run", str(job.folder.absolute())).replace("%", "%%")
    output = (
        f'{folder[:-1]}/job_{number}.out"' if folder[-1] == '"' else f"{folder}/job_{number}.out"
    )
    yield f"--output={output}"
    for option in cluster["options"]:
        if not re.match(r"--[a-z]", option):
            raise ValueError(f"cluster.options: '{option}' is no option such as --reservation=NAME")
        yield _directive("cluster.options", option)


def limit(cluster: Mapping[str, Any]) -> str:
    """What follows the tasks of an array: how many of them may run at a time."""
    return "" if cluster["at_once"] is None else f"%{cluster['at_once']}"


def job_environment(job: Job, cluster: Mapping[str, Any]) -> dict[str, str]:
    """What the job's processes find in their environment beyond what they inherit.

    Raises:
        ValueError: a name that is no name of a variable.
    """
    cache = f"{cluster['cache']}/lola_ds-{getpass.getuser()}"
    variables = {
        "OMP_NUM_THREADS": str(cluster["cpus_per_gpu"]),
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    }
    if cluster["interface"] is not None:
        variables["NCCL_SOCKET_IFNAME"] = variables["GLOO_SOCKET_IFNAME"] = cluster["interface"]
    for name in cluster["environment"]:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"cluster.environment: '{name}' is no name of a variable")
    return variables | {name: str(value) for name, value in cluster["environment"].items()}


def _gpus(job: Job, cluster: Mapping[str, Any]) -> Iterator[str]:
    kind = _name("cluster.gpu_type", cluster["gpu_type"]) + ":" if cluster["gpu_type"] else ""
    if job.gpus and cluster["gpu_request"] == "gpus-per-node":
        yield f"--gpus-per-node={kind}{job.gpus}"
    elif job.gpus and cluster["gpu_request"] == "gres":
        yield f"--gres=gpu:{kind}{job.gpus}"


def _modules(names: Sequence[str]) -> Iterator[str]:
    """Modules as in a login shell; their functions read variables that are not set."""
    if names:
        yield "set +u"
        yield "# shellcheck disable=SC1091"
        yield "command -v module > /dev/null || source /etc/profile"
        yield from (f"module load {shlex.quote(name)} || exit" for name in names)
        yield "set -u"


def _cpus(job: Job, cluster: Mapping[str, Any]) -> int:
    return cluster["cpus_per_gpu"] * max(1, job.gpus)


def _tasks(tasks: Sequence[Task]) -> Iterator[str]:
    """Sets `folder` and `words`, by the number of the array's task if there are several."""
    if len(tasks) == 1:
        yield from _assignments(tasks[0])
        return
    yield 'case "$SLURM_ARRAY_TASK_ID" in'
    for number, task in enumerate(tasks):
        yield f"  {number})"
        yield from (f"    {line}" for line in _assignments(task))
        yield "    ;;"
    yield "esac"


def _assignments(task: Task) -> Iterator[str]:
    yield f"folder={shlex.quote(str(task.folder.absolute()))}"
    yield "words=("
    yield from (f"  {shlex.quote(word)}" for word in task.words)
    yield ")"


def _body(job: Job, cluster: Mapping[str, Any]) -> Iterator[str]:
    """The command on every node, between lines of the diary; then the next attempt, if any."""
    python = shlex.quote(cluster["python"] or sys.executable)
    once, options, inside = _container(cluster)
    interface = f" --interface {shlex.quote(cluster['interface'])}" if cluster["interface"] else ""
    begin = f'{once}{python} -m launch.attempt_log begin "$folder/{FOLDER}"'
    if job.trains:
        yield "# Where the ranks meet: an address of this first node, and a free port on it."
        yield f"LOLA_MASTER=$({begin}{interface}) || exit"
        yield "export LOLA_MASTER"
        program = (
            f'{python} -m launch.node --ranks {job.gpus} --logs "$folder/logs" -- "${{words[@]}}"'
        )
    else:
        yield f"{begin} > /dev/null || exit"
        program = f'{python} -m lola_ds.cli.main {job.command} "${{words[@]}}"'
    yield (
        f"srun --nodes={job.nodes} --ntasks-per-node=1 --cpus-per-task={_cpus(job, cluster)} "
        f"--kill-on-bad-exit=1 --export=ALL{options} \\"
    )
    yield f"  {inside}{program}"
    yield (
        f'{once}{python} -m launch.attempt_log end "$folder/{FOLDER}" "$?" '
        f"--retries {cluster['retries']}"
    )
    yield "status=$?"
    yield 'if [ "$status" -eq 75 ]; then  # not finished, and worth another attempt'
    yield '  scontrol requeue "$SLURM_JOB_ID" && exit 0'
    yield '  echo "lola-ds: Slurm does not requeue this job; submit it again to go on" >&2'
    yield "fi"
    yield 'exit "$status"'


def _container(cluster: Mapping[str, Any]) -> tuple[str, str, str]:
    """What goes before a command on the first node, among srun's options, and after them."""
    if cluster["container"] is None:
        return "", "", ""
    image = shlex.quote(cluster["image"])
    mounts = shlex.quote(",".join(cluster["mounts"]))
    if cluster["container"] == "apptainer":
        bind = f" --bind {mounts}" if cluster["mounts"] else ""
        prefix = f"apptainer exec --nv{bind} {image} "
        return prefix, "", prefix
    mount = f" --container-mounts={mounts}" if cluster["mounts"] else ""
    options = f' --container-image={image}{mount} --container-workdir="$PWD"'
    first = '--overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --export=ALL'
    once = f"srun {first}{options} "
    return once, options, ""


def _name(key: str, value: str) -> str:
    """A value made of the characters that Slurm's names, lists and features are made of.

    Raises:
        ValueError: it holds others.
    """
    if not re.fullmatch(r"[\w.:+@=,/&|*!()\[\]-]+", value, re.ASCII):
        raise ValueError(f"{key}='{value}' holds characters that no such name has in Slurm")
    return value


def _directive(what: str, text: str) -> str:
    """A text as sbatch reads it in a directive.

    Raises:
        ValueError: a line break would end the directive; a backslash in a path switches off
            sbatch's %-patterns.
    """
    if re.search(r"[\x00-\x1f\x7f\\]", text):
        raise ValueError(f"{what}: {text!r} holds a control character or a backslash; rename it")
    if re.fullmatch(r"[\w./:@%+=,-]+", text, re.ASCII):
        return text
    return '"' + text.replace('"', '\\"') + '"'
