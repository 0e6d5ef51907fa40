"""Writing a split of shards: deterministic, atomic, resumable, verified.

Everything is written to a hidden folder beside the split, which appears by one rename once it is
complete (`lola_ds.data.publish`).

A *stream* is a sequence of trajectories written by one process, such as one source file. Where one
shard ends and the next begins depends on the stream's trajectories and the size target alone, so
any number of processes, killed and restarted at any point, gives the same bytes. A shard counts
once its record (`state/<shard>.json`) exists: the shard was written, synced, read back and compared
before that. Running again skips those and starts at the first missing one.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lola_ds.atomic_io import write_atomic
from lola_ds.data.format import (
    FIELDS_SUFFIX,
    META_SUFFIX,
    SCHEMA,
    STORED,
    TAR_END,
    channel_names,
    checksum,
    dump_json,
    encode_frames,
    npy_header,
    tar_header,
    tar_padding,
)
from lola_ds.data.index import Index
from lola_ds.data.publishing import acquire, first_missing, partial_folder, prune, publish
from lola_ds.data.shard_file import GrowingShard
from lola_ds.data.statistics import Moments, frame_moments, nonfinite_places
from lola_ds.fields import TRANSFORMS

__all__ = ["Frames", "ShardWriter", "copy_blocks"]

COPY_BYTES = 8_000_000  # frames read, hashed and written at a time, to stay in the shared cache


class Frames(Protocol):
    """What `add` writes: an array, or anything with a shape whose slices are arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, frames: slice, /) -> np.ndarray: ...


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
        self._shard: GrowingShard | None = None
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
            self._shard = GrowingShard(self._shards / f"{self._shard_name(self._number)}.tmp")
        shard = self._shard
        shard.write(head)
        member = {"key": key, "frames": frames, "meta": dict(meta)}
        member.update(offset=shard.size, frame_bytes=frame_bytes)
        member.update(self._write_frames(shard, key, array, meta, start, stop))
        shard.write(tar_padding(size))
        shard.members.append(member)

    def _write_frames(
        self,
        shard: GrowingShard,
        key: str,
        array: Frames,
        meta: Mapping[str, Any],
        start: int,
        stop: int,
    ) -> dict[str, Any]:
        """Writes frames [start, stop); returns their checksums, moments and non-finite places."""
        checksums, nonfinite, moments = [], [], Moments.empty(array.shape[1])
        with ThreadPoolExecutor(2, "lola-writer") as helpers:
            for a, b, x in _read_ahead(array, start, stop, helpers):
                if x.shape != (b - a, *array.shape[1:]):
                    raise ValueError(f"{_where(meta)}: {x.shape} read for frames {a} to {b}")
                stored = _encode(x, self.dtype, meta)
                reduced = helpers.submit(frame_moments, x, stored, self.dtype, self.transform)
                digests = [f"{checksum(frame):016x}" for frame in stored]
                shard.write_frames(stored.data, digests, key, a)
                checksums += digests
                found = reduced.result()
                if self.transform or found.count.sum() < x.size:  # a transform may hide infinity
                    nonfinite += self._nonfinite(x, a, meta)
                moments = moments.merge(found)
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
        """Completes the open shard and records what it holds."""
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


def copy_blocks(start: int, stop: int, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs [a, b) of frames of `shape` (C, *S), each as many as are handled at a time."""
    block = max(1, COPY_BYTES // (int(np.prod(shape)) * 4))
    return ((a, min(a + block, stop)) for a in range(start, stop, block))


def _read_ahead(
    array: Frames, start: int, stop: int, helpers: ThreadPoolExecutor
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks (a, b, frames [a, b) as float32), each read while the one before it is written."""

    def read(a: int, b: int) -> np.ndarray:
        return np.ascontiguousarray(array[a:b], dtype="<f4")

    blocks = list(copy_blocks(start, stop, array.shape[1:]))
    ahead = helpers.submit(read, *blocks[0])
    for (a, b), following in itertools.zip_longest(blocks, blocks[1:]):
        x = ahead.result()
        if following:
            ahead = helpers.submit(read, *following)
        yield a, b, x


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
