"""The results on disk: one Parquet file that grows unit by unit.

A unit is one forecast: (setting, trajectory, start). Each process writes every unit that it has
finished to a file in `parts/`. At the end, one process merges these, in the order of the units,
into `metrics.parquet` and `metrics.csv`. All files are written atomically. After an interruption,
the units in both places are done and the others are computed.

Commands may write other settings to the same folder at the same time. They share the lock of the
file `.lock` while they write or read units, and hold it exclusively to merge: temporary files that
exist then are left-overs of processes that were killed.

Every file has the identity of the evaluation (model and data) and page checksums. Results of
another model or other data, and damaged files, are refused.
"""

# pandas declares what a selection returns as a union of everything it may be, which pyright cannot
# narrow:
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lola_ds.atomic_io import replacing
from lola_ds.evaluate.tables import COLUMNS, Unit, write_csv

__all__ = ["ResultStore", "read_results"]

SCHEMA = 3
RESULTS, PARTS, LOCK = "metrics.parquet", "parts", ".lock"
_KEY = b"lola_ds"


class ResultStore:
    """The results of one evaluation in a folder.

    Arguments:
        folder: The folder, which is made with the first unit.
        identity: What the numbers depend on, as JSON values by name; the same for all results in
        it.

    Raises:
        ValueError: The folder holds results of another evaluation, or a damaged file. The message
            names the file and what differs.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        # Another command may be merging, and its parts vanish while they are read.
        with _shared_lock(folder) if folder.is_dir() else contextlib.nullcontext():
            self.done = {unit for path in self._files() for unit in self._units(path)}

    def add(self, unit: Unit, table: pd.DataFrame, timing: Mapping[str, float]) -> None:
        """Writes the rows and the timing of one unit."""
        name = f"{unit.setting}_trajectory{unit.trajectory:06d}_start{unit.start:06d}"
        path = self.folder / PARTS / f"{name}.parquet"
        self.folder.mkdir(parents=True, exist_ok=True)
        with _shared_lock(self.folder):
            path.parent.mkdir(exist_ok=True)
            self._write(path, table, {_name(unit): dict(timing)})
        self.done.add(unit)

    def merge(self) -> tuple[pd.DataFrame, dict[Unit, dict[str, float]]]:
        """Merges all parts; called by one process, when all are done.

        Returns:
            All rows, sorted by unit, and the timing of each unit.
        """
        tables: dict[Unit, pd.DataFrame] = {}
        timings: dict[Unit, dict[str, float]] = {}
        with _exclusive_lock(self.folder):
            files = self._files()
            for path in files:
                table, content = _read(path)
                groups = dict(list(table.groupby(list(Unit._fields), sort=False)))
                for name, timing in content["units"].items():
                    unit = _unit(name)
                    tables.setdefault(unit, groups[unit])
                    timings.setdefault(unit, timing)
            units = sorted(tables)
            merged = pd.concat([tables[unit] for unit in units], ignore_index=True)
            if files != [self.folder / RESULTS]:
                record = {_name(unit): timings[unit] for unit in units}
                self._write(self.folder / RESULTS, merged, record)
            write_csv(merged, self.folder / "metrics.csv")
            self._clear(files)
        return merged, {unit: timings[unit] for unit in units}

    def _clear(self, merged: Sequence[Path]) -> None:
        """Removes merged parts and left-overs of killed processes; nothing else is writing."""
        parts = self.folder / PARTS
        for path in merged:
            if path.parent == parts:
                path.unlink()
        if not list(parts.glob("[!.]*")):
            shutil.rmtree(parts, ignore_errors=True)

    def _files(self) -> list[Path]:
        parts = sorted((self.folder / PARTS).glob("[!.]*.parquet"))
        return [path for path in (self.folder / RESULTS, *parts) if path.exists()]

    def _units(self, path: Path) -> list[Unit]:
        """The units of one file, after checking that it is intact and of this evaluation."""
        _, content = _read(path)
        theirs = content["identity"]
        keys = [
            key for key in {**self.identity, **theirs} if self.identity.get(key) != theirs.get(key)
        ]
        if keys:
            differ = ", ".join(
                f"{key}: {theirs.get(key)} there, {self.identity.get(key)} here" for key in keys[:3]
            )
            raise ValueError(
                f"{path} holds results of another evaluation ({differ}); choose another out=, or "
                f"remove {self.folder}"
            )
        return [_unit(name) for name in content["units"]]

    def _write(self, path: Path, table: pd.DataFrame, units: dict[str, dict[str, float]]) -> None:
        content = {"schema": SCHEMA, "identity": self.identity, "units": units, "rows": len(table)}
        data = pa.Table.from_pandas(table[list(COLUMNS)], preserve_index=False)
        data = data.replace_schema_metadata({_KEY: json.dumps(content)})
        with replacing(path) as temporary:
            pq.write_table(data, temporary, compression="zstd", write_page_checksum=True)


def read_results(folder: Path) -> pd.DataFrame:
    """Reads the rows in a folder of results.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The file is damaged or of another program.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `lola-ds eval out={folder}` writes it")
    return _read(path)[0]


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and metadata of a file, its checksums verified."""
    advice = "remove it, and what is missing is computed again"
    try:
        data = pq.read_table(path, page_checksum_verification=True)
        content = json.loads((data.schema.metadata or {}).get(_KEY, b"null"))
        table = data.to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}); {advice}") from error
    ours = isinstance(content, dict) and {"schema", "identity", "units", "rows"} <= set(content)
    if not ours or tuple(table.columns) != COLUMNS or content["schema"] != SCHEMA:
        raise ValueError(f"{path} was not written by this version of `lola-ds eval`; {advice}")
    units = set(map(tuple, table[list(Unit._fields)].drop_duplicates().to_numpy().tolist()))
    if content["rows"] != len(table) or units != {_unit(name) for name in content["units"]}:
        raise ValueError(f"{path} is damaged (rows are missing); {advice}")
    return table, content


def _shared_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Any number of processes write and read units at a time."""
    return _lock(folder, fcntl.LOCK_SH)


def _exclusive_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """One process merges, while no other writes or reads."""
    return _lock(folder, fcntl.LOCK_EX)


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Locks a file in the folder: NFS locks neither folders nor files that are open for reading."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _name(unit: Unit) -> str:
    return f"{unit.setting}:{unit.trajectory}:{unit.start}"


def _unit(name: str) -> Unit:
    setting, trajectory, start = name.rsplit(":", 2)
    return Unit(setting, int(trajectory), int(start))
