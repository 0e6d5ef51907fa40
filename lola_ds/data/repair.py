"""Making a lost index again from the shards themselves.

Every member carries its metadata and the settings of its writer, so that tars alone suffice. For
float32 the index comes out byte for byte as it was; for half precision the statistics are those of
the stored values, and the rounding error is not known any more (0). Checksums are taken of the
bytes as they are now: they guard from now on, and say nothing about before.

Tars that another program wrote in this layout, `webdataset.TarWriter` for one, get an index too.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lola_ds.data.format import (
    FIELDS_SUFFIX,
    INDEX,
    META_SUFFIX,
    SCHEMA,
    STORED,
    ShardError,
    channel_names,
    checksum,
    decode_frames,
)
from lola_ds.data.index import Index, open_index
from lola_ds.data.publishing import merge_records
from lola_ds.data.statistics import Moments, frame_moments, nonfinite_places
from lola_ds.data.writer import copy_blocks

__all__ = ["read_npy_header", "repair_index"]


def repair_index(
    folder: str | Path, progress: Callable[[int], object] = lambda count: None
) -> Index:
    """Writes the index of the shards in a folder, from their bytes.

    Arguments:
        folder: `SHARDS/<dataset>/<split>`, with tars and without an index.
        progress: called with the number of bytes after each frame.

    Returns:
        The index.

    Raises:
        FileExistsError: there is an index.
        FileNotFoundError: there are no tars.
        ShardError: a tar is damaged, a member is incomplete, or a shard in the middle is missing.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise FileExistsError(f"{folder / INDEX} exists; remove it first if it is damaged")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no tars to make an index of")
    _check_numbers(paths)
    records = [_read_shard(path, progress) for path in paths]
    _check_frames(folder, records)
    merge_records(folder, records).save(folder / INDEX)
    return open_index(folder)


def _read_shard(path: Path, progress: Callable[[int], object]) -> dict[str, Any]:
    """The record that the shard's writer would have made."""
    members, layout, settings = [], None, None
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
            entries = {entry.name: entry for entry in tar.getmembers()}
            for name, entry in entries.items():
                if not name.endswith(FIELDS_SUFFIX):
                    continue
                stem = name.removesuffix(FIELDS_SUFFIX)
                if stem + META_SUFFIX not in entries:
                    raise ShardError(f"{path}: {stem}{META_SUFFIX} missing")
                file.seek(entries[stem + META_SUFFIX].offset_data)
                meta = json.loads(file.read(entries[stem + META_SUFFIX].size))
                found = meta.pop("writer", None) or _foreign_settings(meta)
                file.seek(entry.offset_data)
                member, shape = _read_member(path, file, stem, meta, found, progress)
                described = _layout(member["meta"], shape)
                if (layout or described, settings or found) != (described, found):
                    raise ShardError(f"{path}: {name} differs in layout from the members before")
                layout, settings = described, found
                members.append(member)
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ShardError(f"{path}: not a sound shard ({error})") from error
    if not members:
        raise ShardError(f"{path}: holds no trajectories")
    size = path.stat().st_size
    return {
        "name": path.name,
        "settings": settings,
        "layout": layout,
        "size": size,
        "members": members,
    }


def _read_member(
    path: Path,
    file: BinaryIO,
    stem: str,
    meta: dict[str, Any],
    settings: Mapping[str, Any],
    progress: Callable[[int], object],
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """A member's record, and the shape of a frame; `file` stands at the member's first byte."""
    dtype = meta.pop("dtype")
    shape = read_npy_header(path, file, stem, dtype)
    frames = meta.pop("frames", [0, shape[0], shape[0]])
    key, offset = meta.pop("key", stem), file.tell()
    if frames[1] - frames[0] != shape[0]:
        raise ShardError(f"{path}: {stem} holds {shape[0]} frames, its metadata say {frames}")
    transform = {int(channel): name for channel, name in settings["transform"].items()}
    names = channel_names(meta["fields"], list(meta["boundary"]))
    frame_bytes = int(np.prod(shape[1:])) * STORED[dtype].itemsize
    checksums, nonfinite, moments = [], [], Moments.empty(shape[1])
    for a, b in copy_blocks(frames[0], frames[1], shape[1:]):
        data = file.read((b - a) * frame_bytes)
        if len(data) < (b - a) * frame_bytes:
            raise ShardError(f"{path}: file ends in {stem}, frames {a} to {b - 1}")
        stored = np.frombuffer(data, STORED[dtype]).reshape(b - a, *shape[1:])
        x = decode_frames(stored, dtype)
        checksums += [f"{checksum(frame):016x}" for frame in stored]
        nonfinite += nonfinite_places(x, a, names)
        moments = moments.merge(frame_moments(x, stored, dtype, transform))
        progress(len(data))
    member = {"key": key, "frames": frames, "meta": meta, "offset": offset}
    member |= {"frame_bytes": frame_bytes, "checksums": checksums}
    member |= {"moments": moments.to_json(), "nonfinite": nonfinite}
    return member, shape[1:]


def read_npy_header(path: Path, file: BinaryIO, name: str, dtype: str) -> tuple[int, ...]:
    """Reads a `.npy` header; leaves `file` at the first element.

    Returns:
        The array's shape, (T, C, *S).

    Raises:
        ShardError: it is no `.npy` file, or holds anything but C-contiguous elements of `dtype`.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
        shape, fortran, kind = getattr(np.lib.format, read)(file)
    except (ValueError, KeyError) as error:
        raise ShardError(f"{path}: {name}{FIELDS_SUFFIX} is not a .npy file ({error})") from None
    if fortran or kind != STORED[dtype] or len(shape) < 3:
        raise ShardError(
            f"{path}: {name}{FIELDS_SUFFIX} holds {kind} of shape {shape} in "
            f"{'Fortran' if fortran else 'C'} order, expected {dtype} (T, C, *S) in C order"
        )
    return shape


def _layout(meta: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "shape": list(shape),
        "axes": list(meta["boundary"]),
        "fields": meta["fields"],
        "scalars": list(meta["scalars"]),
    }


def _foreign_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a tar that another program wrote."""
    return {
        "schema": SCHEMA,
        "kind": meta.get("kind", "fields"),
        "dtype": meta["dtype"],
        "shard_bytes": 0,
        "transform": {},
        "source": {},
    }


def _check_numbers(paths: list[Path]) -> None:
    """Raises a ShardError where a stream's shards are not numbered without gaps from 0."""
    following: dict[str, int] = {}
    for path in paths:
        match = re.fullmatch(r"(.*)-(\d{5})", path.stem)
        if match:
            expected = following.get(match[1], 0)
            if int(match[2]) != expected:
                missing = path.with_name(f"{match[1]}-{expected:05d}.tar")
                raise ShardError(f"{missing}: shard missing, and {path.name} is there")
            following[match[1]] = expected + 1


def _check_frames(folder: Path, records: list[dict[str, Any]]) -> None:
    """Raises a ShardError where members do not hold each trajectory from first to last frame."""
    reached: dict[str, tuple[int, int]] = {}
    for record in records:
        for member in record["members"]:
            start, stop, total = member["frames"]
            if start != reached.get(member["key"], (0, 0))[0]:
                raise ShardError(
                    f"{folder / record['name']}: frames {start} to {stop - 1} of {member['key']} "
                    "do not follow the member before; a shard is missing"
                )
            reached[member["key"]] = stop, total
    for key, (stop, total) in reached.items():
        if stop != total:
            raise ShardError(f"{folder}: frames {stop} to {total - 1} of {key} are missing")
