"""Where results come from: the model's configuration and how its training went, kept beside them.

A report of results then needs neither the weights nor the run they were trained in.
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
    """Keeps the configuration and, where it is found, the log of the training.

    Arguments:
        out: the folder of results.
        run: the folder that the model was loaded from: weights, or the run itself.
        config: the model's configuration.
        parameters: how many parameters the model has.

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
    """What `write_provenance` kept of the model: path, parameters, config; empty if nothing."""
    path = folder / MODEL
    return json.loads(path.read_text()) if path.is_file() else {}


def read_training(folder: Path) -> list[dict[str, float]]:
    """The lines of the training log that `write_provenance` kept; none if there is no log."""
    path = folder / TRAINING
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the torn last line of a run that was going on
    return found
