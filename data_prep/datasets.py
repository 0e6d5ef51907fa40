"""Configurations of datasets: found by name, completed from a file of The Well, written as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data_prep.well import BOUNDARY_CODES, WellFile
from lola_ds.atomic_io import write_atomic
from lola_ds.config import config_folder
from lola_ds.data.format import channel_names

__all__ = ["complete_config", "dataset_config", "write_config"]


def dataset_config(name: str) -> dict[str, Any]:
    """The configuration `dataset/<name>.yaml`, else one for the source's folder `name`."""
    path = config_folder() / "dataset" / f"{name}.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {"physics": [name]}


def complete_config(name: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A dataset configuration with every key; those that are missing are taken from a file."""
    with WellFile(path) as file:
        described = [{"name": field, "rank": rank} for field, rank in file.fields]
        wraps = BOUNDARY_CODES["PERIODIC"]
        periodic = [all(code == wraps for code in sides) for sides in file.boundary(0).values()]
        augment = ["random_axis_flip"]
        augment += ["random_axis_permute"] if len(set(file.shape)) == 1 else []
        augment += ["random_axis_roll"] if any(periodic) else []
        found = {
            "name": name,
            "physics": [name],
            "include_filters": [],
            "dimensions": list(file.axes),
            "periodic": periodic[0] if len(set(periodic)) == 1 else periodic,
            "fields": list(channel_names(described, file.axes)),
            "transform": {},
            "stats": {},
            "scalars": list(file.scalars(0)),
            "log_scalars": [],
            "augment": augment,
        }
    return {**found, **config}


def write_config(path: Path, config: Mapping[str, Any], comment: str) -> None:
    """Writes a dataset configuration in the style of configs/dataset/, whole or not at all."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in config.items():
        if key == "stats":
            lines.append("stats:")
            lines += [f"  {name}: [{', '.join(map(repr, x))}]" for name, x in value.items()]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
            lines.append(f"{key}: {text.removesuffix('...' + chr(10)).strip()}")
    write_atomic(path, "\n".join(lines) + "\n")
