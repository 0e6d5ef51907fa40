"""From the words of `lola-ds submit` to jobs and what they wait for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.job import FOLDER, Job, Task
from lola_ds.config import compose, compose_submission, expand_sweep, fill_deepspeed

_OWN = re.compile(r"[+~]*(cluster|compute|pipeline)(=|\.|@)")
_LINK = ("command", "words", "arguments", "more", "needs", "gpus", "tasks")


@dataclass(frozen=True)
class Link:
    """A job of a pipeline and the names of those that must succeed first."""

    job: Job
    needs: tuple[str, ...] = ()


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the words about cluster, compute and pipeline from the job's own."""
    own = [word for word in words if _OWN.match(word)]
    return own, [word for word in words if not _OWN.match(word)]


def plan(words: Sequence[str]) -> tuple[dict[str, Any], list[Link]]:
    """The configuration of a submission and its links, in an order in which they can run.

    Raises:
        ValueError: words that the job would refuse, now rather than after hours in the queue.
    """
    own, rest = split_words(words)
    if any(word.startswith("pipeline=") for word in own):
        own += [f"++pipeline.{word}" for word in rest if word.startswith("dataset=")]
        submission = compose_submission(own)
        return submission, pipeline_links(submission, rest)
    submission = compose_submission(own)
    return submission, [Link(training_job(rest, submission))]


def training_job(words: Sequence[str], submission: Mapping[str, Any]) -> Job:
    """One training, or an array of them where words hold several values.

    Raises:
        ValueError: a configuration that cannot be trained on as many ranks.
    """
    points = expand_sweep(words)
    tasks, base = [], Path()
    for point in points:
        config = compose(point)
        base = _place(config["run"], submission["cluster"]["runs"])
        changed = [word for word in point if word not in words]
        folder = base / ",".join(changed).replace("/", "_") if len(points) > 1 else base
        config["run"] = str(folder)
        data = _place(config["data"], submission["cluster"]["data"])
        fill_deepspeed(config, submission["compute"]["nodes"] * submission["compute"]["gpus"])
        kept = [word for word in point if not word.startswith(("run=", "data="))]
        tasks.append(Task(folder, (*kept, override("data", data), override("run", folder))))
    if len({task.folder for task in tasks}) < len(tasks):
        raise ValueError(f"run={base}: two points of the sweep have the same folder")
    compute = submission["compute"]
    return Job(base.name, base / FOLDER, "train", tasks, compute["nodes"], compute["gpus"])


def pipeline_links(submission: Mapping[str, Any], words: Sequence[str]) -> list[Link]:
    """The links of the pipeline `configs/pipeline/*.yaml`.

    Arguments:
        submission: the composed configuration.
        words: for every training.

    Raises:
        ValueError: a link that is malformed, or needs one that does not come before it.
    """
    links: dict[str, Link] = {}
    pipeline = submission["pipeline"]
    root = Path(pipeline["root"]).absolute()
    for name, entry in pipeline["links"].items():
        if unknown := sorted(set(entry) - set(_LINK)):
            raise ValueError(f"pipeline.links.{name} has unknown keys: {', '.join(unknown)}")
        for need in entry.get("needs", ()):
            if need not in links:
                raise ValueError(f"pipeline.links.{name} needs {need}, which is no link before it")
        make = _training_link if entry["command"] == "train" else _plain_link
        job = make(name, entry, submission, words, root)
        links[name] = Link(job, tuple(entry.get("needs", ())))
    return list(links.values())


def _training_link(
    name: str,
    entry: Mapping[str, Any],
    submission: Mapping[str, Any],
    words: Sequence[str],
    root: Path,
) -> Job:
    given = [override(key, value) for key, value in entry["words"].items()]
    job = training_job([*words, *entry.get("more", ()), *given], submission)
    return Job(name, job.folder, "train", job.tasks, job.nodes, job.gpus)


def _plain_link(
    name: str,
    entry: Mapping[str, Any],
    submission: Mapping[str, Any],
    words: Sequence[str],
    root: Path,
) -> Job:
    """A command on one node; a list among its values holds one value for each task of an array."""
    values = dict(entry.get("words", {}))
    if "tasks" in entry:
        values["task"] = [f"{i}/{entry['tasks']}" for i in range(entry["tasks"])]
    lengths = {len(value) for value in values.values() if isinstance(value, list)}
    if len(lengths) > 1:
        raise ValueError(f"pipeline.links.{name}: its lists have {sorted(lengths)} values")
    folder = root / "links" / name
    tasks = []
    for i in range(max(lengths, default=1)):
        chosen = {k: v[i] if isinstance(v, list) else v for k, v in values.items()}
        parts = [*entry.get("arguments", ()), *(f"{k}={v}" for k, v in chosen.items())]
        parts += entry.get("more", ())
        own = folder / str(i) if lengths else folder
        tasks.append(Task(own, tuple(str(part) for part in parts)))
    return Job(name, folder / FOLDER, entry["command"], tasks, 1, entry.get("gpus", 1))


def override(key: str, value: object) -> str:
    """`key=value`, quoted as Hydra wants it."""
    text = str(value)
    if not re.fullmatch(r"[\w./:@%+-]+", text):
        text = "'" + text.replace("'", "\\'") + "'"
    return f"{key}={text}"


def _place(path: str, folder: str | None) -> Path:
    """An absolute path; a relative one lies in `folder`, or else in the current folder."""
    return (Path(folder) / path if folder is not None else Path(path)).absolute()
