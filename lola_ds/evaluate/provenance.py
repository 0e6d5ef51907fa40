"""The configuration and the training log of the evaluated model, kept beside its results.

A report then needs neither the weights nor the training run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lola_ds.atomic_io import write_atomic
from lola_ds.evaluate.tables import write_json

__all__ = ["read_model", "read_training", "write_provenance"]

MODEL, TRAINING = "model.json", "training.jsonl"


def write_provenance(out: Path, run: Path, config: dict[str, Any], parameters: int) -> list[Path]:
    """Writes the configuration of the model and, if it is found, a copy of its training log.

    Arguments:
        out: The folder of results.
        run: The folder that the model was loaded from, of weights or of a training run.
        config: The configuration of the model.
        parameters: The number of its parameters.

    Returns:
        The files written.
    """
    write_json({"path": str(run), "parameters": parameters, "config": config}, out / MODEL)
    files = [out / MODEL]
    for folder in (run, Path(str(config.get("run") or run))):
        log = folder / "metrics.jsonl"
        if log.is_file():
            write_atomic(out / TRAINING, log.read_bytes())
            return [*files, out / TRAINING]
    return files


def read_model(folder: Path) -> dict[str, Any]:
    """Reads path, parameters and configuration of the model; empty if there are none."""
    path = folder / MODEL
    return json.loads(path.read_text()) if path.is_file() else {}


def read_training(folder: Path) -> list[dict[str, float]]:
    """Reads the lines of the training log; none if there is no log."""
    path = folder / TRAINING
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the torn last line of a run that was going on
    return found
