"""From the overrides of `lola-ds submit` to jobs and their dependencies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.job import FOLDER, Job, Task
from lola_ds.config import compose, compose_submission, expand_sweep, fill_deepspeed

__all__ = ["PipelineStage", "make_stages", "override", "pipeline_stages", "training_job"]

_SUBMISSION = re.compile(r"[+~]*(cluster|compute|pipeline)(=|\.|@)")
_STAGE_KEYS = ("command", "arguments", "overrides", "extra", "needs", "gpus", "tasks")


@dataclass(frozen=True)
class PipelineStage:
    """A job of a pipeline and the names of the stages that must succeed before it."""

    job: Job
    needs: tuple[str, ...] = ()


def make_stages(overrides: Sequence[str]) -> tuple[dict[str, Any], list[PipelineStage]]:
    """Composes a submission and checks all of its jobs before any of them is queued.

    Arguments:
        overrides: The overrides of `lola-ds submit`: those of `cluster`, `compute` and `pipeline`,
            and those of the trainings.

    Returns:
        The configuration of the submission and its stages, each after those that it needs.

    Raises:
        ValueError: A job would refuse its overrides.
    """
    own = [text for text in overrides if _SUBMISSION.match(text)]
    rest = [text for text in overrides if not _SUBMISSION.match(text)]
    if any(text.startswith("pipeline=") for text in own):
        own += [f"++pipeline.{text}" for text in rest if text.startswith("dataset=")]
        submission = compose_submission(own)
        return submission, pipeline_stages(submission, rest)
    submission = compose_submission(own)
    return submission, [PipelineStage(training_job(rest, submission))]


def training_job(overrides: Sequence[str], submission: Mapping[str, Any]) -> Job:
    """Makes the job of a training, or of an array of them if an override has several values.

    Arguments:
        overrides: The overrides of `lola-ds train`.
        submission: The composed configuration of the submission.

    Raises:
        ValueError: The configuration cannot be trained on this number of ranks.
    """
    points = expand_sweep(overrides)
    tasks, base = [], Path()
    for point in points:
        config = compose(point)
        base = _place(config["run"], submission["cluster"]["runs"])
        changed = [text for text in point if text not in overrides]
        folder = base / ",".join(changed).replace("/", "_") if len(points) > 1 else base
        config["run"] = str(folder)
        data = _place(config["data"], submission["cluster"]["data"])
        fill_deepspeed(config, submission["compute"]["nodes"] * submission["compute"]["gpus"])
        kept = [text for text in point if not text.startswith(("run=", "data="))]
        tasks.append(Task(folder, (*kept, override("data", data), override("run", folder))))
    if len({task.folder for task in tasks}) < len(tasks):
        raise ValueError(f"run={base}: two points of the sweep have the same folder")
    compute = submission["compute"]
    return Job(base.name, base / FOLDER, "train", tasks, compute["nodes"], compute["gpus"])


def pipeline_stages(submission: Mapping[str, Any], overrides: Sequence[str]) -> list[PipelineStage]:
    """Makes the stages of a pipeline of `configs/pipeline/*.yaml`.

    Arguments:
        submission: The composed configuration of the submission.
        overrides: The overrides of every training.

    Raises:
        ValueError: A stage has an unknown key, or needs a stage that is not before it.
    """
    stages: dict[str, PipelineStage] = {}
    pipeline = submission["pipeline"]
    if "links" in pipeline:
        raise ValueError(
            "pipeline.links was renamed: write `stages:` for `links:`, `overrides:` for `words:` "
            "and `extra:` for `more:`"
        )
    root = Path(pipeline["root"]).absolute()
    for name, entry in pipeline["stages"].items():
        _check_stage(name, entry, stages)
        if entry["command"] == "train":
            given = [override(key, value) for key, value in entry["overrides"].items()]
            job = training_job([*overrides, *entry.get("extra", ()), *given], submission)
            job = replace(job, name=name)
        else:
            job = _command_job(name, entry, root / "stages" / name)
        stages[name] = PipelineStage(job, tuple(entry.get("needs", ())))
    return list(stages.values())


def _check_stage(name: str, entry: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    if unknown := sorted(set(entry) - set(_STAGE_KEYS)):
        raise ValueError(
            f"pipeline.stages.{name} has unknown keys: {', '.join(unknown)}; "
            f"known: {', '.join(_STAGE_KEYS)}"
        )
    for need in entry.get("needs", ()):
        if need not in before:
            raise ValueError(f"pipeline.stages.{name} needs {need}, which is not a stage before it")


def _command_job(name: str, entry: Mapping[str, Any], folder: Path) -> Job:
    """A command on one node; a list among its values has one value per task of an array."""
    values = dict(entry.get("overrides", {}))
    if "tasks" in entry:
        values["task"] = [f"{i}/{entry['tasks']}" for i in range(entry["tasks"])]
    lengths = {len(value) for value in values.values() if isinstance(value, list)}
    if len(lengths) > 1:
        raise ValueError(f"pipeline.stages.{name}: its lists have {sorted(lengths)} values")
    tasks = []
    for i in range(max(lengths, default=1)):
        chosen = {k: v[i] if isinstance(v, list) else v for k, v in values.items()}
        parts = [*entry.get("arguments", ()), *(f"{k}={v}" for k, v in chosen.items())]
        parts += entry.get("extra", ())
        own = folder / str(i) if lengths else folder
        tasks.append(Task(own, tuple(str(part) for part in parts)))
    return Job(name, folder / FOLDER, entry["command"], tasks, 1, entry.get("gpus", 1))


def override(key: str, value: object) -> str:
    """Formats `key=value` with the quotes that Hydra's grammar needs."""
    text = str(value)
    if not re.fullmatch(r"[\w./:@%+-]+", text):
        text = "'" + text.replace("'", "\\'") + "'"
    return f"{key}={text}"


def _place(path: str, folder: str | None) -> Path:
    """Makes a path absolute: relative to `folder`, or else to the current folder."""
    return (Path(folder) / path if folder is not None else Path(path)).absolute()
