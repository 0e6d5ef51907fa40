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
from lola_ds.config.schema import OPTIMIZERS, PRECISIONS, SCHEDULERS, TASKS

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULERS",
    "TASKS",
    "compose",
    "compose_group",
    "compose_submission",
    "config_folder",
    "expand_sweep",
    "fill_deepspeed",
    "find_dataset",
    "load_config",
    "read_deepspeed",
    "save_config",
    "split_batch",
    "uses_cpu_adam",
]
