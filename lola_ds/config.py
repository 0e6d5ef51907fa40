"""The configuration: composed by Hydra, checked against a schema, refused when it cannot work.

Groups (`dataset`, `ae`, `surrogate`, `denoiser`, …) and keys carry lola's names. Hydra refuses
overrides of keys that do not exist; the schema refuses values of the wrong type; `check` refuses
combinations. Every refusal names the key, the value and the fix.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .ds_schema import complete_deepspeed

TASKS = {"autoencoder": "ae", "surrogate": "surrogate", "diffusion": "denoiser"}
"""Each task and the configuration group of its network."""

OPTIMIZERS = ("adamw", "soap", "psgd", "muon", "schedule_free")
SCHEDULERS = ("cosine", "linear", "exponential", "constant")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")

_TIME = r"(\d+-\d+|\d+:\d\d)(:\d\d){0,2}"
"""Slurm's limits of time but plain minutes, in which a file's unquoted 12:00:00 would be taken."""


@dataclass
class Stats:
    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class Dataset:
    name: str = MISSING
    physics: list[str] = MISSING
    dimensions: list[str] = MISSING
    fields: list[str] = MISSING
    stats: Stats = field(default_factory=Stats)
    include_filters: list[str] = field(default_factory=list)
    periodic: Any = False  # or one flag for each of the dimensions
    transform: dict[int, str] = field(default_factory=dict)
    scalars: list[str] = field(default_factory=list)
    log_scalars: list[str] = field(default_factory=list)
    augment: list[str] = field(default_factory=list)
    gravity: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


@dataclass
class Optim:
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.95
    precondition_beta: float = 0.999
    precondition_frequency: int = 16
    precondition_dim: int = 4096
    weight_decay: float = 0.0
    warmup: int = 0
    scheduler: str = "cosine"
    grad_clip: float = 1.0


@dataclass
class Context:
    law: str = "poisson_truncated"
    rate: float = 2.0
    atleast: int = 1
    rho: float = 1.0


@dataclass
class Trajectory:
    length: int = 5
    stride: int = 4
    context: Context = field(default_factory=Context)


@dataclass
class DeepSpeed:
    config: str = "zero1.json"
    nvme_path: str | None = None


@dataclass
class Train:
    epochs: int = 100
    epoch_size: int = 4096
    batch_size: int = 64
    accumulation: int = 1
    workers: int = 2
    log_every: int = 10
    restrict: int | None = None
    shuffle_bytes: int | None = None
    quarantine: bool = False
    recheck: bool = False


@dataclass
class Valid:
    samples: int = 256
    batch_size: int = 64


@dataclass
class Ema:
    decay: Any = 0.999
    power_law: list[float] = field(default_factory=list)
    keep_every: int | None = None


@dataclass
class Watch:
    patience: int = 3
    spike: float | None = None
    timeout: float = 1800.0


@dataclass
class Profile:
    steps: str | None = None


@dataclass
class Checkpoint:
    every: int = 1
    keep: int = 2
    best: str | None = "valid/loss"
    asynchronous: bool = True


@dataclass
class Fork:
    run: str | None = None
    strict: bool = True
    freeze: str | None = None


@dataclass
class Wandb:
    mode: str = "offline"
    project: str = "lola_ds"
    entity: str | None = None


@dataclass
class Config:
    """The whole training configuration. The networks' own keys are checked by their factories."""

    task: str = MISSING
    run: str = MISSING
    data: str = MISSING
    ae_run: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    tf32: bool = True
    deterministic: bool = False
    kernels: str = "auto"
    compile: bool = False
    sequence_parallel: int = 1
    dataset: Dataset = field(default_factory=Dataset)
    ae: dict[str, Any] = field(default_factory=dict)
    surrogate: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    trajectory: Trajectory = field(default_factory=Trajectory)
    deepspeed: DeepSpeed = field(default_factory=DeepSpeed)
    train: Train = field(default_factory=Train)
    valid: Valid = field(default_factory=Valid)
    ema: Ema = field(default_factory=Ema)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    watch: Watch = field(default_factory=Watch)
    profile: Profile = field(default_factory=Profile)
    fork: Fork = field(default_factory=Fork)
    wandb: Wandb = field(default_factory=Wandb)
    tensorboard: bool = False


@dataclass
class Cluster:
    """Where jobs run; the keys are explained in `configs/cluster/default.yaml`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gpu_request: str = "gpus-per-node"
    gpu_type: str | None = None
    cpus_per_gpu: int = 8
    memory: str | None = None
    time: str = "24:00:00"
    signal: str = "USR2"
    warning: int = 120
    retries: int = 3
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    interface: str | None = None
    container: str | None = None
    image: str | None = None
    mounts: list[str] = field(default_factory=list)
    python: str | None = None
    runs: str | None = None
    data: str | None = None
    cache: str = "/tmp"
    at_once: int | None = None
    options: list[str] = field(default_factory=list)


@dataclass
class Compute:
    nodes: int = 1
    gpus: int = 1


@dataclass
class Submission:
    """The configuration of `lola-ds submit`, beside the job's own words."""

    cluster: Cluster = field(default_factory=Cluster)
    compute: Compute = field(default_factory=Compute)
    pipeline: dict[str, Any] = field(default_factory=dict)


def config_folder(name: str = "configs") -> Path:
    """The folder of the YAML files (`configs`) or DeepSpeed JSON files (`ds_configs`)."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / name, package / f"_{name}"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder {name}/ is missing beside the package {package}")


def compose(overrides: Sequence[str]) -> DictConfig:
    """Composes `configs/train.yaml` with `overrides` and checks it.

    Raises:
        ValueError: a key that does not exist, an option that does not exist, a value of the wrong
            type, a missing value, or a combination that cannot work.
    """
    config = _compose("train", Config, overrides)
    check(config)
    return config


def compose_submission(overrides: Sequence[str]) -> dict[str, Any]:
    """Composes `configs/submit.yaml` with overrides of `cluster`, `compute` and `pipeline`.

    Raises:
        ValueError: a key or option that does not exist, or a value that cannot be.
    """
    config = _compose("submit", Submission, overrides)
    try:
        plain = to_dict(config)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is not set; add {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error)) from error
    _choice(plain, "cluster.gpu_request", ("gpus-per-node", "gres", "none"))
    _choice(plain, "cluster.signal", ("USR1", "USR2", "TERM"))
    counts = ("cpus_per_gpu", "warning", "at_once")
    for key in ("compute.nodes", "compute.gpus", *(f"cluster.{name}" for name in counts)):
        if (count := _get(plain, key)) is not None and count < 1:
            raise ValueError(f"{key}={count} must be at least 1")
    time = _get(plain, "cluster.time")
    if not re.fullmatch(_TIME, time):
        raise ValueError(
            f"cluster.time={time}: write hours:minutes:seconds or days-hours, in quotes in a file "
            "(YAML takes 12:00:00 for a number)"
        )
    if plain["cluster"]["container"] is not None:
        _choice(plain, "cluster.container", ("apptainer", "pyxis"))
        if plain["cluster"]["image"] is None:
            raise ValueError("cluster.container needs cluster.image=…")
    return plain


def expand_sweep(words: Sequence[str]) -> list[list[str]]:
    """The points of a sweep: `["a=1,2", "b=3"]` -> `[["a=1", "b=3"], ["a=2", "b=3"]]`.

    Commas in quotes and brackets separate nothing, as in Hydra.

    Raises:
        ValueError: a word that is not an override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: list[list[str]] = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
            if override.is_sweep_override():
                key = override.get_key_element()
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                choices.append([word])
        except HydraException as error:
            raise ValueError(_explain(error)) from error
    return [list(point) for point in itertools.product(*choices)]


def _compose(root: str, schema: type, overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = hydra_compose(root, overrides=list(overrides))
        config = OmegaConf.merge(OmegaConf.structured(schema), composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error)) from error
    assert isinstance(config, DictConfig)
    return config


def compose_group(group: str, name: str) -> dict[str, Any]:
    """One option of one group as a dictionary: `compose_group("dataset", "euler_open")`.

    Raises:
        ValueError: there is no such option; the message lists those that exist.
    """
    folder = config_folder() / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"{group}={name} does not exist; known: {known}")
    container = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def find_dataset(physics: Sequence[str]) -> dict[str, Any] | None:
    """The option of the group `dataset` that is made of these physics, if there is one."""
    for file in sorted((config_folder() / "dataset").glob("*.yaml")):
        dataset = compose_group("dataset", file.stem)
        if sorted(dataset["physics"]) == sorted(physics):
            return dataset
    return None


def to_dict(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries, lists and scalars."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def load_config(path: Path) -> dict[str, Any]:
    """Reads the `config.yaml` of a run or converted folder.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is not YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a run folder or a converted model")
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    assert isinstance(config, DictConfig)
    return to_dict(config)


def save_config(config: dict[str, Any], path: Path) -> None:
    """Writes a configuration atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    OmegaConf.save(OmegaConf.create(config), temporary)
    temporary.replace(path)


def check(config: DictConfig) -> None:
    """Refuses values and combinations that cannot work.

    Raises:
        ValueError: names the key, its value and the fix.
    """
    try:
        plain = to_dict(config)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error)
        raise ValueError(f"{key} is not set; add {key}=… to the command") from error
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error)) from error
    _choice(plain, "task", TASKS)
    _choice(plain, "device", ("auto", "cpu", "cuda"))
    _choice(plain, "precision", PRECISIONS)
    _choice(plain, "kernels", ("auto", "torch", "triton"))
    _choice(plain, "optim.optimizer", OPTIMIZERS)
    _choice(plain, "optim.scheduler", SCHEDULERS)
    _choice(plain, "trajectory.context.law", ("poisson_truncated", "poisson_mod"))
    _choice(plain, "wandb.mode", ("offline", "online", "disabled"))
    for key in (
        "train.epochs train.epoch_size train.batch_size train.accumulation train.log_every "
        "valid.samples valid.batch_size checkpoint.every checkpoint.keep "
        "trajectory.length trajectory.stride sequence_parallel"
    ).split():
        if _get(plain, key) < 1:
            raise ValueError(f"{key}={_get(plain, key)} must be at least 1")
    for key in ("restrict", "shuffle_bytes"):
        value = plain["train"][key]
        if value is not None and value < 1:
            raise ValueError(f"train.{key}={value} must be at least 1, or null")
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


def _check_fork(config: dict[str, Any]) -> None:
    """Freezing needs an autoencoder with weights worth keeping."""
    if config["fork"]["freeze"] is None:
        return
    _choice(config, "fork.freeze", ("encoder", "decoder"))
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


def split_batch(config: dict[str, Any], world_size: int) -> int:
    """The micro-batch: samples per rank and forward pass.

    Arguments:
        config: the whole configuration.
        world_size: the number of ranks, or of groups that share samples.

    Raises:
        ValueError: `train.batch_size` does not divide by world size × accumulation.
    """
    train = config["train"]
    parts = world_size * train["accumulation"]
    if train["batch_size"] % parts:
        raise ValueError(
            f"train.batch_size={train['batch_size']} does not divide into {world_size} ranks × "
            f"train.accumulation={train['accumulation']}; choose a multiple of {parts}"
        )
    return train["batch_size"] // parts


def read_deepspeed(name: str) -> dict[str, Any]:
    """Reads a DeepSpeed JSON: a path, or the name of a file in `ds_configs/`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON.
    """
    path = Path(name)
    if not path.is_absolute() and not path.is_file():
        path = config_folder("ds_configs") / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in config_folder("ds_configs").glob("*.json")))
        raise FileNotFoundError(f"deepspeed.config={name} does not exist; known: {known}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed.config={name} is not valid JSON: {error}") from error


def fill_deepspeed(config: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Reads the DeepSpeed JSON and fills its "auto" entries from the configuration.

    Arguments:
        config: the whole configuration.
        world_size: the number of ranks.

    Returns:
        The complete DeepSpeed configuration, without any "auto".

    Raises:
        ValueError: unreadable JSON, an unknown key or stage, a value of the wrong type, an entry
            that contradicts the configuration, a stage that cuts up the tensors which the
            optimizer needs whole, or ranks that do not divide into sequence groups.
        FileNotFoundError: no such file.
    """
    name = config["deepspeed"]["config"]
    given, shards = read_deepspeed(name), config["sequence_parallel"]
    sequence = {"sequence_parallel_size": given.pop("sequence_parallel_size", shards)}
    filled = complete_deepspeed(given, name) | sequence
    stage = filled["zero_optimization"]["stage"]
    optimizer = config["optim"]["optimizer"]
    if stage and optimizer != "adamw":
        raise ValueError(
            f"optim={optimizer} steps whole tensors, which ZeRO stage {stage} ({name}) cuts up; "
            "use deepspeed=zero0, where each rank still holds the optimizer states of its own "
            "tensors only, or optim=adamw"
        )
    if world_size % shards:
        raise ValueError(
            f"sequence_parallel={shards} ranks share a sample, but {world_size} ranks were "
            f"started; start a multiple of {shards}"
        )
    values = {
        "sequence_parallel_size": shards,
        "train_batch_size": config["train"]["batch_size"],
        "train_micro_batch_size_per_gpu": split_batch(config, world_size // shards),
        "gradient_accumulation_steps": config["train"]["accumulation"],
        "gradient_clipping": config["optim"]["grad_clip"],
    }
    for key, value in values.items():
        if filled[key] not in ("auto", value):
            raise ValueError(
                f"{name}: {key}={filled[key]} contradicts {value} of the Hydra configuration; "
                'write "auto" there'
            )
        filled[key] = value
    _fill_drive(filled["zero_optimization"], config["deepspeed"]["nvme_path"], name)
    return filled


def _fill_drive(zero: dict[str, Any], folder: str | None, name: str) -> None:
    """Sets the folder of what is offloaded to a drive: one, named in either place."""
    sections = {key: value for key, value in zero.items() if key.startswith("offload_")}
    given = {key: s["nvme_path"] for key, s in sections.items() if s["device"] == "nvme"}
    if folder is not None and not given:
        raise ValueError(
            f"deepspeed.nvme_path={folder} with {name}, which offloads nothing to a drive; choose "
            "deepspeed=zero3_nvme, or remove it"
        )
    folders = {folder, *given.values()} - {None, "auto"}
    if given and len(folders) != 1:
        raise ValueError(
            f"{name}: offloading to a drive needs one folder on it, for all its sections, not "
            f"{sorted(map(str, folders)) or 'none'}; add deepspeed.nvme_path=FOLDER"
        )
    for key in given:
        zero[key]["nvme_path"] = next(iter(folders))


def uses_cpu_adam(ds_config: dict[str, Any]) -> bool:
    """Whether a complete DeepSpeed configuration offloads the optimizer to DeepSpeed's own."""
    offload = ds_config["zero_optimization"].get("offload_optimizer", {"device": "none"})
    return offload["device"] != "none" and ds_config["zero_force_ds_cpu_optimizer"]


def _get(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _choice(config: dict[str, Any], key: str, known: Sequence[str] | dict[str, str]) -> None:
    value = _get(config, key)
    if value not in known:
        raise ValueError(f"{key}={value} is unknown; choose one of {', '.join(known)}")


_NOISE = (
    "full_key",
    "object_type",
    "reference",
    "Config search",
    "provider=",
    "To append",
    "See http",
)


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the key and the nearest known one."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    key = getattr(error, "full_key", None)
    if key and key not in " ".join(lines[:1]):
        lines.insert(0, f"{key}:")
    mistyped = re.search(r"Could not override '([^']+)'", lines[0])
    if mistyped:
        lines = [f"unknown key '{mistyped[1]}'", _nearest(mistyped[1])]
    return " ".join(dict.fromkeys(lines))


def _nearest(key: str) -> str:
    known = [
        key
        for schema in (Config, Submission)
        for key in _flatten(OmegaConf.to_container(OmegaConf.structured(schema)))
    ]
    close = difflib.get_close_matches(key, known, n=2)
    return f"(did you mean {' or '.join(close)}?)" if close else "(--help lists the keys)"


def _flatten(tree: object, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [k for n, t in tree.items() for k in _flatten(t, f"{prefix}.{n}" if prefix else str(n))]
