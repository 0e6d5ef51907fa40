"""The configuration: composed by Hydra, checked against a schema, refused when it cannot work."""

from lola_ds.config.compose import (
    compose,
    compose_group,
    compose_submission,
    config_folder,
    expand_sweep,
    find_dataset,
    load_config,
    save_config,
)
from lola_ds.config.ds_config import fill_deepspeed, read_deepspeed, split_batch, uses_cpu_adam
from lola_ds.config.overrides import parse_overrides
from lola_ds.config.schema import DEVICES, OPTIMIZERS, PRECISIONS, SCHEDULERS, SPLITS, TASKS
from lola_ds.config.setting import setting

__all__ = [
    "DEVICES",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULERS",
    "SPLITS",
    "TASKS",
    "compose",
    "compose_group",
    "compose_submission",
    "config_folder",
    "expand_sweep",
    "fill_deepspeed",
    "find_dataset",
    "load_config",
    "parse_overrides",
    "read_deepspeed",
    "save_config",
    "setting",
    "split_batch",
    "uses_cpu_adam",
]
