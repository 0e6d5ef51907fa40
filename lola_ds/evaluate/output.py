"""The files of one evaluation: tables, a summary, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lola_ds.evaluate import tables
from lola_ds.evaluate.plots import curves
from lola_ds.evaluate.tables import Unit

__all__ = ["Evaluation", "draw_tables", "list_files", "summarize_timing", "write_tables"]


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation.

    Attributes:
        table: The rows of `metrics.parquet` with this setting.
        spectra: The rows of `spectra.csv`.
        summary: The content of `summary.json`.
        text: A short table for the terminal.
        files: The files written.
    """

    table: pd.DataFrame
    spectra: pd.DataFrame
    summary: dict[str, Any]
    text: str
    files: list[Path]


def summarize_timing(timings: dict[Unit, dict[str, float]], device: torch.device) -> dict[str, Any]:
    """Returns the seconds per state, over all units, and the device.

    Arguments:
        timings: For each unit, the seconds of each kind of work, and the number of states.
        device: The device.
    """
    states = sum(timing["states"] for timing in timings.values())
    kinds = [kind for kind in next(iter(timings.values())) if kind != "states"]
    sums = {kind: sum(timing[kind] for timing in timings.values()) for kind in kinds}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    each = {f"{kind}_seconds_per_state": total / states for kind, total in sums.items()}
    return {"device": name, "threads": torch.get_num_threads(), "states": states, **each}


def write_tables(table: pd.DataFrame, summary: dict[str, Any], folder: Path) -> list[Path]:
    """Writes `spectra.csv` and `summary.json`, and returns their paths."""
    files = [folder / "spectra.csv", folder / "summary.json"]
    tables.write_csv(tables.mean_spectra(table), files[0])
    tables.write_json(summary, files[1])
    return files


def draw_tables(
    table: pd.DataFrame, shape: Sequence[int], axis: curves.TimeAxis, folder: Path
) -> list[Path]:
    """Draws errors and spectra, and returns the paths of the figures.

    Arguments:
        table: The rows of `metrics.parquet` with one setting.
        shape: The shape *S of the grid.
        axis: The labels of the time axes.
        folder: The folder of the setting.
    """
    files = [folder / "vrmse.png", folder / "vrmse_by_field.png", folder / "spectra.png"]
    curves.plot_error(table, files[0], axis=axis)
    curves.plot_error_by_field(table, files[1], axis=axis)
    curves.plot_spectra(tables.mean_spectra(table), shape, files[2], axis=axis)
    return files


def list_files(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Lists `files` of one setting, the pictures beside them, and what all settings share."""
    shared = [folder.parent / name for name in ("metrics.parquet", "metrics.csv")]
    shared += folder.parent.glob("climatology.npz")
    kinds = ("snapshots_*", "slices_*", "animation.*")
    return [*shared, *files, *sorted(path for kind in kinds for path in folder.glob(kind))]
