"""Renders a job as a complete, readable batch script, which can also be submitted by hand.

Everything that comes from the user is quoted: for the shell in commands, and for sbatch in its
directives, which are comments to the shell.
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

__all__ = ["directives", "job_environment", "limit", "render"]


def render(job: Job, cluster: Mapping[str, Any], directory: Path) -> str:
    """Renders the script of a job.

    Arguments:
        job: The job.
        cluster: The configuration group `cluster`.
        directory: The folder that relative paths refer to.

    Raises:
        ValueError: A value is not valid for a Slurm option, or sbatch cannot read a path.
    """
    parts = [
        ["#!/usr/bin/env bash", f"# {job.name}: lola-ds {job.command}, by lola-ds submit"],
        [f"#SBATCH {text}" for text in directives(job, cluster, directory)],
        ["# shellcheck disable=SC2016  # arguments are literal", "set -u"],
        list(_modules(cluster["modules"])),
        [f"export {k}={shlex.quote(v)}" for k, v in job_environment(job, cluster).items()],
        list(_tasks(job.tasks)),
        list(_body(job, cluster)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def directives(job: Job, cluster: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """Yields the options of sbatch."""
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
            raise ValueError(
                f"cluster.options: '{option}' is not an option such as --reservation=NAME"
            )
        yield _directive("cluster.options", option)


def limit(cluster: Mapping[str, Any]) -> str:
    """The suffix of an array that limits how many of its tasks run at a time."""
    return "" if cluster["at_once"] is None else f"%{cluster['at_once']}"


def job_environment(job: Job, cluster: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables of the job's processes that they do not inherit.

    Raises:
        ValueError: `cluster.environment` has a key that is not the name of a variable.
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
            raise ValueError(f"cluster.environment: '{name}' is not the name of a variable")
    return variables | {name: str(value) for name, value in cluster["environment"].items()}


def _gpus(job: Job, cluster: Mapping[str, Any]) -> Iterator[str]:
    kind = _name("cluster.gpu_type", cluster["gpu_type"]) + ":" if cluster["gpu_type"] else ""
    if job.gpus and cluster["gpu_request"] == "gpus-per-node":
        yield f"--gpus-per-node={kind}{job.gpus}"
    elif job.gpus and cluster["gpu_request"] == "gres":
        yield f"--gres=gpu:{kind}{job.gpus}"


def _modules(names: Sequence[str]) -> Iterator[str]:
    """Loads modules as in a login shell. Their functions read unset variables, hence `set +u`."""
    if names:
        yield "set +u"
        yield "# shellcheck disable=SC1091"
        yield "command -v module > /dev/null || source /etc/profile"
        yield from (f"module load {shlex.quote(name)} || exit" for name in names)
        yield "set -u"


def _cpus(job: Job, cluster: Mapping[str, Any]) -> int:
    return cluster["cpus_per_gpu"] * max(1, job.gpus)


def _tasks(tasks: Sequence[Task]) -> Iterator[str]:
    """Sets `folder` and `arguments`, by the number of the array's task if there are several."""
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
    yield "arguments=("
    yield from (f"  {shlex.quote(word)}" for word in task.arguments)
    yield ")"


def _body(job: Job, cluster: Mapping[str, Any]) -> Iterator[str]:
    """Runs the command on every node, records it in the attempt log, and requeues if needed."""
    python = shlex.quote(cluster["python"] or sys.executable)
    once, options, inside = _container(cluster)
    interface = f" --interface {shlex.quote(cluster['interface'])}" if cluster["interface"] else ""
    begin = f'{once}{python} -m launch.attempt_log begin "$folder/{FOLDER}"'
    if job.trains:
        yield "# The address and a free port of the first node, where the ranks meet."
        yield f"LOLA_MASTER=$({begin}{interface}) || exit"
        yield "export LOLA_MASTER"
        logs = f'--ranks {job.gpus} --logs "$folder/logs"'
        program = f'{python} -m launch.node {logs} -- "${{arguments[@]}}"'
    else:
        yield f"{begin} > /dev/null || exit"
        program = f'{python} -m lola_ds.cli.main {job.command} "${{arguments[@]}}"'
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
    yield 'if [ "$status" -eq 75 ]; then  # not finished; another attempt can help'
    yield '  scontrol requeue "$SLURM_JOB_ID" && exit 0'
    yield '  echo "lola-ds: Slurm does not requeue this job; submit it again to resume" >&2'
    yield "fi"
    yield 'exit "$status"'


def _container(cluster: Mapping[str, Any]) -> tuple[str, str, str]:
    """The container's prefix on the first node, its options of srun, and its prefix within srun."""
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
    """Checks that a value has only characters of Slurm's names, lists and features.

    Raises:
        ValueError: The value has other characters.
    """
    if not re.fullmatch(r"[\w.:+@=,/&|*!()\[\]-]+", value, re.ASCII):
        raise ValueError(f"{key}='{value}' has characters that Slurm does not allow")
    return value


def _directive(what: str, text: str) -> str:
    """Quotes a text for a directive of sbatch.

    Raises:
        ValueError: The text has a control character, which would end the directive, or a
            backslash, which disables the %-patterns of sbatch.
    """
    if re.search(r"[\x00-\x1f\x7f\\]", text):
        raise ValueError(f"{what}: {text!r} has a control character or a backslash; rename it")
    if re.fullmatch(r"[\w./:@%+=,-]+", text, re.ASCII):
        return text
    return '"' + text.replace('"', '\\"') + '"'
