"""How a split is written and published: its hidden folder, locks, and the final rename.

Everything is written to a hidden folder beside the split, `.<split>.partial`, and the split appears
by one rename once it is complete:

    .train.partial/shards/<dataset>-train-<stream>-<number>.tar     complete shards
    .train.partial/state/…                                         their records, locks
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lola_ds.atomic_io import move_into_place
from lola_ds.data.format import INDEX
from lola_ds.data.index import Index, open_index, share_common
from lola_ds.data.statistics import Moments

__all__ = ["acquire", "first_missing", "merge_records", "partial_folder", "prune", "publish"]

LOCK_SECONDS = 10.0  # how long to wait for a killed writer's lock


def partial_folder(folder: Path) -> Path:
    """The hidden folder in which the split `folder` grows."""
    return folder.parent / f".{folder.name}.partial"


def publish(folder: str | Path, streams: Sequence[str]) -> Index:
    """Makes a split of its complete streams visible: writes the index, then renames the folder.

    Arguments:
        folder: the split's folder.
        streams: names of all its streams, in the order of the index.

    Raises:
        ValueError: a stream is not complete, or streams differ in fields, shape or scalars.
    """
    folder = Path(folder)
    partial = partial_folder(folder)
    records = []
    for stream in streams:
        done = partial / "state" / f"{stream}.done"
        if not done.exists():
            raise ValueError(f"{partial}: stream {stream} is not complete; run its writer again")
        for number in range(json.loads(done.read_bytes())["shards"]):
            name = f"{folder.parent.name}-{folder.name}-{stream}-{number:05d}.tar"
            record = json.loads((partial / "state" / f"{name}.json").read_bytes())
            records.append({"name": name, **record})
    if not records:
        raise ValueError(f"{folder}: no trajectories to write")
    for left in (partial / "shards").glob(".*"):  # an index whose writing was interrupted
        left.unlink()
    merge_records(partial / "shards", records).save(partial / "shards" / INDEX)
    move_into_place(partial / "shards", folder)
    shutil.rmtree(partial)
    return open_index(folder)


def merge_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> Index:
    """The index of shards from their records, in order; see `ShardWriter._close_shard`."""
    settings, layout = records[0]["settings"], records[0]["layout"]
    keys: dict[str, int] = {}
    metas, segments, checksums, nonfinite, sources = [], [], [], [], []
    moments = Moments.empty(layout["shape"][0])
    for shard, record in enumerate(records):
        if record["layout"] != layout:
            raise ValueError(
                f"{record['name']}: {record['layout']} differs from {records[0]['name']}: {layout}"
            )
        if record["settings"]["source"] not in sources:
            sources.append(record["settings"]["source"])
        for member in record["members"]:
            start, stop, _ = member["frames"]
            if start == 0:
                if member["key"] in keys:
                    raise ValueError(f"two trajectories have the key {member['key']}")
                keys[member["key"]] = len(keys)
                metas.append({"key": member["key"], **member["meta"]})
            trajectory = keys[member["key"]]
            segments.append([trajectory, start, stop, shard, member["offset"]])
            checksums += [int(digits, 16) for digits in member["checksums"]]
            nonfinite += [[trajectory, *place] for place in member["nonfinite"]]
            moments = moments.merge(Moments.from_json(member["moments"]))
    common, own = share_common(metas)
    header = {
        **{key: settings[key] for key in ("schema", "kind", "dtype", "shard_bytes", "transform")},
        **layout,
        "sources": [source for source in sources if source],
        "statistics": moments.summary(),
        "nonfinite": nonfinite,
        "shards": [record["name"] for record in records],
        "common": common,
        "trajectories": own,
    }
    return Index(
        folder,
        header,
        segments=np.array(segments, np.int64),
        checksums=np.array(checksums, np.uint64),
        shard_sizes=np.array([record["size"] for record in records], np.int64),
    )


def acquire(path: Path) -> int:
    """Locks a file, made if it is missing; the lock goes with the descriptor, or the process.

    Raises:
        BlockingIOError: another process holds it for longer than a killed one's lock may last.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise BlockingIOError(f"{path}: another process is writing these shards") from None
            time.sleep(0.1)


def first_missing(folder: Path) -> Path:
    """The outermost folder that creating `folder` would create; `folder` if only it is missing."""
    folder = folder.absolute()
    while not folder.parent.exists():
        folder = folder.parent
    return folder


def prune(folder: Path, created: Path) -> None:
    """Removes a split's partial folder if nothing in it is worth keeping, then empty parents.

    Arguments:
        folder: the split's folder.
        created: the outermost folder that writing the split made; see `first_missing`.
    """
    partial = partial_folder(folder).absolute()
    busy = [*partial.glob("shards/*"), *partial.glob("state/*.lock")]
    if busy:
        return
    shutil.rmtree(partial, ignore_errors=True)
    parent = partial.parent
    while parent.is_relative_to(created) and parent.exists() and not any(parent.iterdir()):
        parent.rmdir()
        parent = parent.parent
