"""Evaluations, read from folders of results."""

# pandas declares what a selection returns as a union of everything it may be, which pyright cannot
# narrow:
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportArgumentType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lola_ds.evaluate.provenance import read_model, read_training
from lola_ds.evaluate.store import RESULTS, read_results

__all__ = ["Run", "differences", "find_runs"]


@dataclass(frozen=True)
class Run:
    """One evaluation: a model with one setting.

    Attributes:
        name: The name of the folder, with as many parents as distinguish it, and what distinguishes
            the setting if there are several.
        folder: The folder of its figures.
        summary: The content of `summary.json`.
        table: The rows of `metrics.parquet` with the setting.
        model: Path, parameters and configuration of the model, as far as they are known.
        training: The lines of the training log.
    """

    name: str
    folder: Path
    summary: dict[str, Any]
    table: pd.DataFrame
    model: dict[str, Any]
    training: list[dict[str, float]]

    @property
    def task(self) -> str:
        """The task: `autoencoder`, `surrogate` or `diffusion`."""
        return self.summary["task"]

    @property
    def emulates(self) -> bool:
        """Whether the model is an emulator."""
        return self.task != "autoencoder"

    @property
    def methods(self) -> list[str]:
        """The methods that were scored."""
        return list(self.summary["vrmse"])

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of model and evaluation, by dotted key."""
        return {
            **flatten(self.model.get("config", {})),
            **flatten(self.summary["settings"], "eval."),
        }

    def mean(self, method: str, metric: str, leads: Iterable[int] | None = None) -> float | None:
        """Returns the mean of a metric over forecasts, fields and leads; None without rows."""
        rows = self.table[(self.table["method"] == method) & (self.table["metric"] == metric)]
        if leads is not None:
            rows = rows[rows["lead"].isin(list(leads))]
        return float(rows["value"].mean()) if len(rows) else None

    def by_lead(self, method: str, metric: str) -> pd.Series:
        """Returns the mean of a metric over forecasts and fields, by lead."""
        rows = self.table[(self.table["method"] == method) & (self.table["metric"] == metric)]
        return rows.groupby("lead")["value"].mean()


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads the evaluations in some folders, or in the folders inside these.

    Raises:
        FileNotFoundError: A folder has no results.
        ValueError: A file is damaged.
    """
    folders: list[Path] = []
    for path in paths:
        found = [path] if _holds_results(path) else sorted(filter(_holds_results, path.glob("*")))
        if not found:
            raise FileNotFoundError(
                f"{path} holds no results (metrics.parquet); `lola-ds eval out={path}` writes them"
            )
        folders += [folder for folder in found if folder not in folders]
    names = zip(folders, _names(folders))
    return [run for folder, name in names for run in _read(folder, name)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a tree with dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings that differ between runs: a value or None for each run, by key."""
    settings = [run.settings for run in runs]
    keys = {key: None for flat in settings for key in flat}
    rows = {key: [flat.get(key) for flat in settings] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _holds_results(folder: Path) -> bool:
    return (folder / RESULTS).is_file()


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, of one length, that differ."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> list[Run]:
    """The evaluations in a folder of results, one for each setting."""
    table, model, training = read_results(folder), read_model(folder), read_training(folder)
    groups = {str(setting): rows for setting, rows in table.groupby("setting", sort=False)}
    runs = []
    for setting, end in _distinguish(list(groups)).items():
        path = folder / setting / "summary.json"
        try:
            summary = json.loads(path.read_text())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing; the same `lola-ds eval` again writes it"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error})") from error
        full = f"{name}, {end}" if end else name
        runs.append(Run(full, folder / setting, summary, groups[setting], model, training))
    return runs


def _distinguish(settings: Sequence[str]) -> dict[str, str]:
    """The parts of the settings' names that not all of them have: ab16-steps8 -> ab16.

    `plain` stands for none; a single setting needs no name.
    """
    if len(settings) == 1:
        return {settings[0]: ""}
    parts = {setting: setting.split("-") for setting in settings}
    common = set.intersection(*map(set, parts.values()))
    return {
        setting: " ".join(part for part in parts[setting] if part not in common) or "plain"
        for setting in settings
    }
