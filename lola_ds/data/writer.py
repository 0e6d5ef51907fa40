"""Writing a split of shards: deterministic, atomic, resumable, verified.

Everything is written to a hidden folder beside the split, `.<split>.partial`, and the split appears
by one rename once it is complete:

    .train.partial/shards/<dataset>-train-<stream>-<number>.tar     complete shards
    .train.partial/state/…                                          what they hold, locks

A *stream* is a sequence of trajectories written by one process, such as one source file. Where one
shard ends and the next begins depends on the stream's trajectories and the size target alone, so
any number of processes, killed and restarted at any point, gives the same bytes. A shard counts
once its record (`state/<shard>.json`) exists: the shard was written, synced, read back and compared
before that. Running again skips those and starts at the first missing one.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..fields import TRANSFORMS
from .format import (
    FIELDS_SUFFIX,
    INDEX,
    META_SUFFIX,
    SCHEMA,
    STORED,
    TAR_END,
    ShardError,
    channel_names,
    checksum,
    decode_frames,
    dump_json,
    encode_frames,
    npy_header,
    sync_folder,
    tar_header,
    tar_padding,
    write_atomic,
)
from .index import Index, open_index, share_common
from .statistics import Moments

COPY_BYTES = 32_000_000  # frames read, hashed and written at a time
MOMENTS_BYTES = 4_000_000  # reduced at a time, to stay in cache
LOCK_SECONDS = 10.0  # how long to wait for a killed writer's lock


class Frames(Protocol):
    """What `add` writes: an array, or anything with a shape whose slices are arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, frames: slice, /) -> np.ndarray: ...


def partial_folder(folder: Path) -> Path:
    """The hidden folder in which the split `folder` grows."""
    return folder.parent / f".{folder.name}.partial"


class ShardWriter:
    """Writes one stream of trajectories as shards.

        writer = ShardWriter("SHARDS/euler/train")
        for key, array, meta in trajectories:
            writer.add(key, array, meta)
        writer.finish()

    To resume, run the same calls again: trajectories already in complete shards are skipped without
    being read (`key in writer` tells). With several streams, each writer calls `close()` and one
    process calls `publish(folder, streams)` at the end.

    Arguments:
        folder: the split's folder, which must not exist yet.
        kind: `fields` or `latents`.
        dtype: element type in the shards: float32, float16 or bfloat16.
        shard_bytes: size target; a shard is closed before a member would exceed it, and a
            trajectory larger than this is cut along time.
        stream: name of this writer's stream.
        transform: transform of each channel before statistics are gathered, as in a dataset's
            configuration (`{0: log1p}`).
        allow_nonfinite: record NaN and infinity in the index with a warning, instead of refusing.
        source: description of the input, compared when resuming (JSON values).
        progress: called with the number of bytes after each write.

    Raises:
        FileExistsError: the split exists.
        ValueError: an unknown kind, dtype or transform; or the split was begun with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        kind: str = "fields",
        dtype: str = "float32",
        shard_bytes: int = 2_000_000_000,
        stream: str = "00000",
        transform: Mapping[int, str] | None = None,
        allow_nonfinite: bool = False,
        source: Mapping[str, Any] | None = None,
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        if kind not in ("fields", "latents"):
            raise ValueError(f"kind={kind}: expected fields or latents")
        if dtype not in STORED:
            raise ValueError(f"dtype={dtype}: expected one of {', '.join(STORED)}")
        for name in (transform or {}).values():
            if name not in TRANSFORMS:
                raise ValueError(f"transform {name}: expected one of {', '.join(TRANSFORMS)}")
        self.folder = Path(folder)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder}: exists; remove it or write elsewhere")
        self.stream = stream
        self.transform = {int(channel): name for channel, name in (transform or {}).items()}
        self.settings = {
            "schema": SCHEMA,
            "kind": kind,
            "dtype": dtype,
            "shard_bytes": shard_bytes,
            "transform": {str(channel): name for channel, name in self.transform.items()},
            "source": dict(source or {}),
        }
        self.dtype, self.shard_bytes = dtype, shard_bytes
        self.allow_nonfinite = allow_nonfinite
        self._progress = progress
        self._created = first_missing(partial_folder(self.folder))
        self._shards = partial_folder(self.folder) / "shards"
        self._state = partial_folder(self.folder) / "state"
        for path in (self._shards, self._state):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = acquire(self._state / f"{stream}.lock")
        self._shard: _OpenShard | None = None
        self._layout: dict[str, Any] | None = None
        self._complete = self._load_complete()
        self._number = len(self._complete)
        self._skip = [
            (member["key"], member["frames"]) for record in self._complete for member in record
        ]
        self._held = _whole_trajectories(self._skip)

    @property
    def closed(self) -> bool:
        """Whether the stream is complete already."""
        return (self._state / f"{self.stream}.done").exists()

    def __contains__(self, key: str) -> bool:
        """Whether all of trajectory `key` lies in complete shards already."""
        return key in self._held

    def add(self, key: str, array: Frames, meta: Mapping[str, Any]) -> None:
        """Appends a trajectory.

        Arguments:
            key: unique name, without dots or slashes (WebDataset splits names at the first dot).
            array: (T, C, *S), read in blocks along axis 0.
            meta: dataset, split, source, trajectory (number in its source), scalars {name: value},
                boundary {axis: [low, high]}, time and space grids, fields [{"name", "rank"}]; the
                keys of `boundary` name the spatial axes.

        Raises:
            ValueError: NaN or infinity (naming file, trajectory, step and field); a bad key; a
                shape or fields unlike the other trajectories'; a value that overflows `dtype`.
        """
        try:
            self._check(key, array, meta)
            for start, stop in self._cuts(array.shape):
                frames = [start, stop, array.shape[0]]
                if self._skip:
                    self._skip_member(key, frames)
                else:
                    self._write_member(key, array, meta, frames)
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """Completes the stream: closes its last shard and records how many there are."""
        try:
            if self._skip:
                raise ValueError(
                    f"{self._state}: holds '{self._skip[0][0]}', which the input lacks now; "
                    f"remove {partial_folder(self.folder)} to start again"
                )
            self._close_shard()
            record = dump_json({"shards": self._number})
            write_atomic(self._state / f"{self.stream}.done", record)
        except BaseException:
            self.discard()
            raise
        self._release()

    def finish(self) -> Index:
        """Completes the split where this is its only stream; returns its index."""
        self.close()
        return publish(self.folder, [self.stream])

    def discard(self) -> None:
        """Drops the unfinished shard; complete ones stay for the next run, empty folders go."""
        if self._shard is not None:
            self._shard.discard()
            self._shard = None
        if self._lock is not None:
            (self._state / f"{self.stream}.lock").unlink(missing_ok=True)
            self._release()
        prune(self.folder, self._created)

    # Which trajectories, and where they are cut

    def _check(self, key: str, array: Frames, meta: Mapping[str, Any]) -> None:
        if not key or set(key) & set("./\\\0"):
            raise ValueError(f"key '{key}': dots, slashes and empty names are not allowed")
        axes = list(meta["boundary"])
        layout = {
            "shape": list(array.shape[1:]),
            "axes": axes,
            "fields": [dict(field) for field in meta["fields"]],
            "scalars": list(meta["scalars"]),
        }
        names = channel_names(layout["fields"], axes)
        if len(names) != array.shape[1] or len(axes) != len(array.shape) - 2 or not array.shape[0]:
            raise ValueError(
                f"{key}: array of shape {tuple(array.shape)} (T, C, *S) does not hold the channels "
                f"{', '.join(names)} on the axes {', '.join(axes)}"
            )
        self._layout = self._layout or layout
        if layout != self._layout:
            raise ValueError(
                f"{key}: {layout} differs from the trajectories before: {self._layout}"
            )

    def _cuts(self, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Cuts T frames in nearly equal runs, as few as the size target allows."""
        frame_bytes = int(np.prod(shape[1:])) * STORED[self.dtype].itemsize
        runs = -(-shape[0] // max(1, self.shard_bytes // frame_bytes))
        bounds = [shape[0] * run // runs for run in range(runs + 1)]
        return itertools.pairwise(bounds)

    def _skip_member(self, key: str, frames: list[int]) -> None:
        expected = self._skip.pop(0)
        if expected != (key, frames):
            raise ValueError(
                f"{self._state}: the split was begun with {expected[0]} frames {expected[1]} where "
                f"the input has {key} frames {frames}; remove {partial_folder(self.folder)}"
            )

    def _load_complete(self) -> list[list[dict[str, Any]]]:
        """The members of this stream's complete shards."""
        records = []
        while (path := self._state / f"{self._shard_name(len(records))}.json").exists():
            record = json.loads(path.read_bytes())
            if record["settings"] != self.settings:
                self._release()
                raise ValueError(
                    f"{partial_folder(self.folder)}: begun with {record['settings']}, now "
                    f"{self.settings}; finish with the same input and settings, or remove it"
                )
            records.append(record["members"])
        return records

    # One shard

    def _shard_name(self, number: int) -> str:
        return f"{self.folder.parent.name}-{self.folder.name}-{self.stream}-{number:05d}.tar"

    def _write_member(
        self, key: str, array: Frames, meta: Mapping[str, Any], frames: list[int]
    ) -> None:
        start, stop, total = frames
        name = key if stop - start == total else f"{key}-t{start:06d}"
        entries = {**meta, "key": key, "dtype": self.dtype, "frames": frames}
        meta_bytes = dump_json({**entries, "writer": self.settings})
        header = npy_header((stop - start, *array.shape[1:]), self.dtype)
        frame_bytes = int(np.prod(array.shape[1:])) * STORED[self.dtype].itemsize
        size = len(header) + (stop - start) * frame_bytes
        parts = [tar_header(name + META_SUFFIX, len(meta_bytes)), meta_bytes]
        parts += [tar_padding(len(meta_bytes)), tar_header(name + FIELDS_SUFFIX, size), header]
        head = b"".join(parts)
        if self._shard and self._shard.size + len(head) + size + len(TAR_END) > self.shard_bytes:
            self._close_shard()
        if self._shard is None:
            self._shard = _OpenShard(self._shards / f"{self._shard_name(self._number)}.tmp")
        shard = self._shard
        shard.write(head)
        member = {"key": key, "frames": frames, "meta": dict(meta)}
        member.update(offset=shard.size, frame_bytes=frame_bytes)
        member.update(self._write_frames(shard, array, meta, start, stop))
        shard.write(tar_padding(size))
        shard.members.append(member)

    def _write_frames(
        self, shard: _OpenShard, array: Frames, meta: Mapping[str, Any], start: int, stop: int
    ) -> dict[str, Any]:
        """Writes frames [start, stop); returns their checksums, moments and non-finite places."""
        channels = array.shape[1]
        checksums, nonfinite, moments = [], [], Moments.empty(channels)
        for a, b in copy_blocks(start, stop, array.shape[1:]):
            x = np.ascontiguousarray(array[a:b], dtype="<f4")
            if x.shape != (b - a, *array.shape[1:]):
                raise ValueError(f"{_where(meta)}: {x.shape} read for frames {a} to {b}")
            nonfinite += self._nonfinite(x, a, meta)
            stored = _encode(x, self.dtype, meta)
            checksums += [f"{checksum(frame):016x}" for frame in stored]
            moments = moments.merge(frame_moments(x, stored, self.dtype, self.transform))
            shard.write(stored.data)
            self._progress(x.nbytes)
        return {"checksums": checksums, "moments": moments.to_json(), "nonfinite": nonfinite}

    def _nonfinite(self, x: np.ndarray, start: int, meta: Mapping[str, Any]) -> list[list]:
        """[step, channel name] wherever x (T, C, *S) is not finite; refuses unless allowed."""
        places = nonfinite_places(x, start, channel_names(meta["fields"], list(meta["boundary"])))
        if places:
            message = f"{_where(meta)}, step {places[0][0]}, field {places[0][1]}: NaN or infinity"
            if not self.allow_nonfinite:
                raise ValueError(f"{message}; repair the source, or allow it with --allow-nan")
            warnings.warn(f"{message} ({len(places)} such frames of fields)", stacklevel=2)
        return places

    def _close_shard(self) -> None:
        """Completes the open shard: sync, read back, rename, record."""
        if self._shard is None:
            return
        name = self._shard_name(self._number)
        self._shard.complete(self._shards / name)
        record = {
            "settings": self.settings,
            "layout": self._layout,
            "size": self._shard.size,
            "members": self._shard.members,
        }
        write_atomic(self._state / f"{name}.json", dump_json(record))
        self._shard = None
        self._number += 1

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _OpenShard:
    """A tar that grows under a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.members: list[dict[str, Any]] = []
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by complete or discard)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.size += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            hint = f"{error.strerror}; complete shards are kept, run again to go on"
            raise OSError(error.errno, hint, str(self.path)) from error

    def complete(self, path: Path) -> None:
        """Ends the tar, makes it last, reads every frame back, and gives it its name."""
        self.write(TAR_END)
        os.fsync(self._file.fileno())
        self._file.close()
        self._verify()
        os.replace(self.path, path)
        sync_folder(path.parent)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _verify(self) -> None:
        with open(self.path, "rb") as file:
            if hasattr(os, "posix_fadvise"):  # from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for member in self.members:
                start, stop, _ = member["frames"]
                file.seek(member["offset"])
                frame_bytes = member["frame_bytes"]
                for t, expected in zip(range(start, stop), member["checksums"], strict=True):
                    if f"{checksum(file.read(frame_bytes)):016x}" != expected:
                        raise ShardError(
                            f"{self.path}: {member['key']}, frame {t} read back differs from what "
                            "was written; check the disk and run again"
                        )


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
    merge_records(partial / "shards", records).save(partial / "shards" / INDEX)
    os.rename(partial / "shards", folder)
    sync_folder(folder.parent)
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


def copy_blocks(start: int, stop: int, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs [a, b) of frames of `shape` (C, *S), each as many as are handled at a time."""
    block = max(1, COPY_BYTES // (int(np.prod(shape)) * 4))
    return ((a, min(a + block, stop)) for a in range(start, stop, block))


def nonfinite_places(x: np.ndarray, start: int, names: Sequence[str]) -> list[list]:
    """[step, channel name] wherever x (T, C, *S), frames from `start` on, is not finite."""
    finite = np.isfinite(x)
    if finite.all():
        return []
    bad = np.argwhere(~finite.reshape(*x.shape[:2], -1).all(-1))
    return [[start + int(t), names[c]] for t, c in bad]


def frame_moments(
    x: np.ndarray, stored: np.ndarray, dtype: str, transform: Mapping[int, str]
) -> Moments:
    """Moments of frames (T, C, *S) after the transform; `stored` is what is kept of them."""
    moments = Moments.empty(x.shape[1])
    frames = max(1, MOMENTS_BYTES // x[0].nbytes)
    for start in range(0, len(x), frames):
        part = x[start : start + frames].reshape(-1, x.shape[1], x[0, 0].size)
        error = None
        if dtype != "float32":
            kept = decode_frames(stored[start : start + frames], dtype)
            with np.errstate(invalid="ignore"):
                error = kept.reshape(part.shape) - part
        moments = moments.merge(Moments.of(_transformed(part, transform), error))
    return moments


def _transformed(x: np.ndarray, transform: Mapping[int, str]) -> np.ndarray:
    """x (T, C, N) after the transform of each channel."""
    y = x.copy() if transform else x
    for channel, name in transform.items():
        values = np.ascontiguousarray(x[:, channel])
        y[:, channel] = TRANSFORMS[name][0](torch.from_numpy(values)).numpy()
    return y


def _where(meta: Mapping[str, Any]) -> str:
    return f"{meta['source']}: trajectory {meta['trajectory']}"


def _encode(x: np.ndarray, dtype: str, meta: Mapping[str, Any]) -> np.ndarray:
    try:
        return encode_frames(x, dtype)
    except ValueError as error:
        raise ValueError(f"{_where(meta)}: {error}; choose another dtype") from None


def _whole_trajectories(members: Sequence[tuple[str, list[int]]]) -> set[str]:
    """Keys whose last frame is among `members` (which are in order)."""
    return {key for key, (_, stop, total) in members if stop == total}


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
