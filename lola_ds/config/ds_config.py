"""A DeepSpeed file, complete: every key written out, every "auto" filled from the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lola_ds.config.compose import config_folder
from lola_ds.config.ds_schema import complete_deepspeed


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
    """Reads a DeepSpeed JSON and writes out every key that it leaves out.

    Arguments:
        name: A path, or the name of a file in `ds_configs/`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or a key or value is wrong.
    """
    path = Path(name)
    if not path.is_absolute() and not path.is_file():
        path = config_folder("ds_configs") / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in config_folder("ds_configs").glob("*.json")))
        raise FileNotFoundError(f"deepspeed.config={name} does not exist; known: {known}")
    try:
        given = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed.config={name} is not valid JSON: {error}") from error
    return complete_deepspeed(given, name)


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
    filled, shards = read_deepspeed(name), config["sequence_parallel"]
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
