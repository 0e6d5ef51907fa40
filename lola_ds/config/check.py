"""Refuses values and combinations that cannot work, by key, value and fix."""

from __future__ import annotations

import re
from typing import Any

from lola_ds.config.schema import TASKS, Config, Submission
from lola_ds.config.setting import check_settings

_TIME = r"(\d+-\d+|\d+:\d\d)(:\d\d){0,2}"
"""Slurm's limits of time but plain minutes, in which a file's unquoted 12:00:00 would be taken."""


def check(plain: dict[str, Any]) -> None:
    """Refuses a training that cannot work.

    Raises:
        ValueError: names the key, its value and the fix.
    """
    check_settings(Config, plain)
    _check_numbers(plain)
    train = plain["train"]
    if train["epoch_size"] % train["batch_size"]:
        raise ValueError(
            f"train.epoch_size={train['epoch_size']} is not a multiple of "
            f"train.batch_size={train['batch_size']}; an epoch is a whole number of steps"
        )
    periodic, axes = plain["dataset"]["periodic"], plain["dataset"]["dimensions"]
    flags = periodic if isinstance(periodic, list) else [periodic] * len(axes)
    if len(flags) != len(axes) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f"dataset.periodic={periodic} must be true or false, or a list of them for each of "
            f"dataset.dimensions={axes}"
        )
    channels = len(plain["dataset"]["fields"])
    for key in ("mean", "std"):
        given = len(plain["dataset"]["stats"][key])
        if given != channels:
            raise ValueError(
                f"dataset.stats.{key} has {given} values for {channels} dataset.fields; "
                "give one each"
            )
    if plain["task"] == "autoencoder" and plain["ae_run"] is not None:
        raise ValueError(
            f"ae_run={plain['ae_run']} has no meaning for task=autoencoder; remove it "
            "(fork.run=… starts from another run's weights)"
        )
    _check_fork(plain)
    _check_ema(plain)
    _check_compile(plain)
    if plain["task"] != "autoencoder" and plain["trajectory"]["length"] < 2:
        raise ValueError(
            f"trajectory.length={plain['trajectory']['length']} leaves nothing to predict; "
            f"task={plain['task']} needs at least 2"
        )


def check_submission(plain: dict[str, Any]) -> None:
    """Refuses a cluster or a job that cannot be.

    Raises:
        ValueError: names the key, its value and the fix.
    """
    check_settings(Submission, plain)
    time = _get(plain, "cluster.time")
    if not re.fullmatch(_TIME, time):
        raise ValueError(
            f"cluster.time={time}: write hours:minutes:seconds or days-hours, in quotes in a file "
            "(YAML takes 12:00:00 for a number)"
        )
    if plain["cluster"]["container"] is not None and plain["cluster"]["image"] is None:
        raise ValueError("cluster.container needs cluster.image=…")


def _check_fork(config: dict[str, Any]) -> None:
    """Freezing needs an autoencoder with weights worth keeping."""
    if config["fork"]["freeze"] is None:
        return
    for key, holds in {
        "task": config["task"] == "autoencoder",
        "fork.run": config["fork"]["run"] is not None,
    }.items():
        if not holds:
            raise ValueError(
                f"fork.freeze={config['fork']['freeze']} with {key}={_get(config, key)}: a half of "
                "an autoencoder (task=autoencoder) can be frozen at the weights of fork.run=…"
            )


def _check_ema(config: dict[str, Any]) -> None:
    """The averages are possible and have different names."""
    ema, every = config["ema"], config["checkpoint"]["every"]
    decays = ema["decay"] if isinstance(ema["decay"], list) else [ema["decay"]]
    numbers = [value for value in (*decays, *ema["power_law"]) if value is not None]
    real = all(isinstance(value, (int, float)) for value in numbers)
    rules = {
        "ema.decay": (
            real and all(0 <= value < 1 for value in decays if value is not None),
            "must be a number in [0, 1), a list of them, or null with ema.power_law=[…]",
        ),
        "ema.power_law": (
            real and all(0 < value <= 12**-0.5 for value in ema["power_law"]),
            "must be a list of sigma_rel in (0, 0.2886], such as [0.05, 0.1]",
        ),
        "ema": (
            numbers and len(set(numbers)) == len(numbers),
            "must ask for one average at least, each of them once",
        ),
        "ema.keep_every": (
            ema["keep_every"] is None or (ema["keep_every"] > 0 == ema["keep_every"] % every),
            f"must be a multiple of checkpoint.every={every} epochs, or null",
        ),
    }
    for key, (holds, message) in rules.items():
        if not holds:
            raise ValueError(f"{key}={_get(config, key)} {message}")


def _check_compile(config: dict[str, Any]) -> None:
    """Blocks that compile are one graph each."""
    if not config["compile"]:
        return
    group = TASKS[config["task"]]
    rules = {
        f"{group}.checkpointing": (
            config[group].get("checkpointing") != "selective",
            "chooses nothing within a graph; with compile=true, choose none, full or an integer",
        ),
        "sequence_parallel": (
            config["sequence_parallel"] == 1,
            "exchanges tokens within blocks, which then are not one graph; choose compile=false",
        ),
    }
    for key, (holds, message) in rules.items():
        if not holds:
            raise ValueError(f"{key}={_get(config, key)} {message}")


def _check_numbers(config: dict[str, Any]) -> None:
    """Ranges of the real-valued settings."""
    optim, context = config["optim"], config["trajectory"]["context"]
    watch = config["watch"]
    rules = {
        "optim.learning_rate": (optim["learning_rate"] > 0, "must be positive"),
        "optim.grad_clip": (optim["grad_clip"] >= 0, "must be at least 0 (0 switches it off)"),
        "optim.warmup": (optim["warmup"] >= 0, "must be at least 0 steps"),
        "optim.weight_decay": (optim["weight_decay"] >= 0, "must be at least 0"),
        "optim.betas": (
            len(optim["betas"]) == 2 and all(0 <= beta < 1 for beta in optim["betas"]),
            "must be two numbers in [0, 1)",
        ),
        "optim.momentum": (0 <= optim["momentum"] < 1, "must be in [0, 1)"),
        "optim.precondition_beta": (0 <= optim["precondition_beta"] < 1, "must be in [0, 1)"),
        "optim.precondition_frequency": (
            optim["precondition_frequency"] >= 1,
            "must be at least 1 step",
        ),
        "optim.precondition_dim": (optim["precondition_dim"] >= 1, "must be at least 1"),
        "watch.patience": (watch["patience"] >= 1, "must be at least 1 step"),
        "watch.timeout": (watch["timeout"] >= 0, "must be at least 0 seconds (0 waits for ever)"),
        "watch.spike": (
            watch["spike"] is None or watch["spike"] > 1,
            "must be above 1 (times the median gradient norm), or null",
        ),
        "checkpoint.best": (
            (config["checkpoint"]["best"] or "valid/").startswith("valid/"),
            "must name a number of the validation, such as valid/loss, or be null",
        ),
        "trajectory.context.rho": (0 <= context["rho"] <= 1, "must be in [0, 1]"),
        "trajectory.context.rate": (context["rate"] > 0, "must be positive"),
    }
    for key, (holds, message) in rules.items():
        if not holds:
            raise ValueError(f"{key}={_get(config, key)} {message}")
    if config["trajectory"]["length"] > 1 and not (
        1 <= context["atleast"] < config["trajectory"]["length"]
    ):
        raise ValueError(
            f"trajectory.context.atleast={context['atleast']} must be between 1 and "
            f"trajectory.length - 1 = {config['trajectory']['length'] - 1}"
        )


def _get(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
