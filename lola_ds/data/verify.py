"""Checking a split of shards in full: tar against index, checksums, values."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lola_ds.data.format import (
    FIELDS_SUFFIX,
    META_SUFFIX,
    STORED,
    ShardError,
    checksum,
    decode_frames,
)
from lola_ds.data.index import Index, open_index
from lola_ds.data.repair import read_npy_header

__all__ = ["Report", "verify_split"]

SHOWN = 5  # problems spelt out in an error


@dataclass
class Report:
    """What `verify_split` found.

    Attributes:
        index: the split's index.
        problems: one line each, naming shard, key and, where there is one, frame and offset.
    """

    index: Index
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises a ShardError with the first problems, if there are any."""
        if self.problems:
            rest = len(self.problems) - SHOWN
            more = f"; and {rest} more" if rest > 0 else ""
            raise ShardError("; ".join(self.problems[:SHOWN]) + more)


def verify_split(
    folder: str | Path, progress: Callable[[int], object] = lambda count: None
) -> Report:
    """Reads every byte of a split and compares it with the index.

    Arguments:
        folder: `SHARDS/<dataset>/<split>`.
        progress: called with the number of bytes after each frame.

    Returns:
        A report; the split is sound where it lists no problems.

    Raises:
        FileNotFoundError, ShardError: the index cannot be opened, or a shard is missing or
            truncated (see `open_index`).
    """
    report = Report(open_index(folder))
    for shard in range(len(report.index.shards)):
        try:
            report.problems += _verify_shard(report.index, shard, progress)
        except tarfile.TarError as error:
            path = report.index.folder / report.index.shards[shard]
            report.problems.append(f"{path}: not a sound tar ({error})")
    return report


def _verify_shard(index: Index, shard: int, progress: Callable[[int], object]) -> Iterator[str]:
    path = index.folder / index.shards[shard]
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        members = {member.name: member for member in tar.getmembers()}
        rows = index.segments[index.segments[:, 3] == shard].tolist()
        for trajectory, start, stop, _, offset in rows:
            meta = index.meta(trajectory)
            whole = stop - start == index.frames[trajectory]
            name = meta["key"] if whole else f"{meta['key']}-t{start:06d}"
            yield from _verify_meta(path, tar, members.pop(name + META_SUFFIX, None), name, meta)
            member = members.pop(name + FIELDS_SUFFIX, None)
            if member is None:
                yield f"{path}: {name}{FIELDS_SUFFIX} missing"
                continue
            file.seek(member.offset_data)
            try:
                shape = read_npy_header(path, file, name, index.dtype)
            except ShardError as error:
                yield str(error)
                continue
            if shape != (stop - start, *index.shape):
                yield f"{path}: {name}{FIELDS_SUFFIX} has another shape than the index says"
            if file.tell() != offset:
                yield f"{path}: {name}{FIELDS_SUFFIX} is not where the index says ({offset})"
                continue
            for t in range(start, stop):
                problem = _frame_problem(index, trajectory, t, file.read(index.frame_bytes))
                if problem:
                    at = f"frame {t}, byte offset {offset + (t - start) * index.frame_bytes}"
                    yield f"{path}: {meta['key']}, {at}: {problem}"
                progress(index.frame_bytes)
        for name in members:
            yield f"{path}: {name} is not in the index"


def _verify_meta(
    path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, meta: dict
) -> Iterator[str]:
    if member is None:
        yield f"{path}: {name}{META_SUFFIX} missing"
        return
    try:
        stored = json.load(tar.extractfile(member) or io.BytesIO())
    except ValueError as error:
        yield f"{path}: {name}{META_SUFFIX} is not JSON ({error})"
        return
    differing = [key for key in meta if key != "key" and stored.get(key) != meta[key]]
    if differing:
        yield f"{path}: {name}{META_SUFFIX} and the index differ in {', '.join(differing)}"


def _frame_problem(index: Index, trajectory: int, t: int, data: bytes) -> str | None:
    """What is wrong with the bytes of a frame, if anything."""
    if checksum(data) != int(index.checksums[index.first[trajectory] + t]):
        return "checksum mismatch"
    values = decode_frames(np.frombuffer(data, STORED[index.dtype]), index.dtype)
    if not np.isfinite(values).all():
        recorded = any(place[:2] == [trajectory, t] for place in index.header["nonfinite"])
        return None if recorded else "NaN or infinity that the index does not record"
    return None
