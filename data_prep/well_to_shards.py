"""The Well's HDF5 -> shards, in parallel over files, processes and machines.

Each file is one stream of `lola_ds.data.ShardWriter`, so what is written does not depend on the
number of workers or tasks, and a run that was killed goes on where it stopped. Tasks (of a Slurm
array, say) share nothing but the file system: each writes its own files' streams, and whichever
finds all streams complete makes the split visible.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from data_prep.well import WellFile, WellTrajectory, list_files
from lola_ds.data.format import INDEX, channel_names
from lola_ds.data.index import Index, open_index
from lola_ds.data.native import XXH3
from lola_ds.data.publishing import acquire, first_missing, partial_folder, prune, publish
from lola_ds.data.writer import ShardWriter
from lola_ds.log import logger

__all__ = [
    "SHARD_BYTES",
    "SourceFile",
    "check_files",
    "fingerprint",
    "shard_files",
    "shard_split",
    "trajectory_key",
]

SHARD_BYTES = 2_000_000_000
WORKER_BYTES = 1_000_000_000  # a second worker process pays off from about this much input on


class SourceFile(Protocol):
    """One file of trajectories, open for reading; `WellFile` says what each entry is."""

    path: Path
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    trajectories: int
    steps: int
    fields: list[tuple[str, int]]
    channels: int

    def __enter__(self) -> SourceFile: ...

    def __exit__(self, *error: object) -> None: ...

    def read(self, trajectory: int, frames: slice) -> np.ndarray: ...

    def meta(self, trajectory: int, split: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs to write one file's stream."""

    path: Path
    open_file: Callable[[Path], SourceFile]
    folder: Path
    split: str
    stream: str
    source: Mapping[str, Any]
    options: Mapping[str, Any]
    gravity: Sequence[str]
    total: int  # bytes to write


def shard_split(
    source: str | Path,
    out: str | Path,
    dataset: str,
    split: str,
    *,
    workers: int | None = None,
    dtype: str = "float32",
    allow_nan: bool = False,
    shard_bytes: int = SHARD_BYTES,
    include_filters: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    transform: Mapping[int, str] | None = None,
    gravity: Sequence[str] = (),
    task: tuple[int, int] = (0, 1),
) -> Index | None:
    """Writes `out/<dataset>/<split>` from `source/<dataset>/data/<split>`.

    Nothing is visible in `out` before the split is complete. Where the split is there already, made
    from the same input, nothing is done.

    Arguments:
        source: the root of The Well's data.
        out: the root of the shards.
        dataset: folder name of the dataset.
        split: train, valid or test.
        workers: processes; by default one per gigabyte of input, at most one per core and file.
        dtype: element type of the shards: float32 (bitwise), float16 or bfloat16.
        allow_nan: record NaN and infinity in the index instead of refusing them.
        shard_bytes: size target of a shard.
        include_filters: keep files whose name contains one of these.
        fields: channels that the dataset must have, in order (not checked by default).
        transform: transform of channels before their statistics are gathered.
        gravity: axes along which gravity points.
        task: (i, n): write only every n-th file, from the i-th on. Of n such calls, in any order
            and at any time, the one that completes the split makes it visible.

    Returns:
        The split's index, or None while other tasks have files to write.

    Raises:
        FileNotFoundError, OSError: a folder is missing, or a file is truncated or unreadable.
        FileExistsError: the split exists and was made from other input or with other settings.
        ValueError: files differ in fields or grid, NaN or infinity (naming file, trajectory, step
            and field).
    """
    return shard_files(
        list_files(source, dataset, split, include_filters),
        Path(out) / dataset / split,
        WellFile,
        workers=workers,
        dtype=dtype,
        allow_nan=allow_nan,
        shard_bytes=shard_bytes,
        fields=fields,
        transform=transform,
        gravity=gravity,
        task=task,
    )


def shard_files(
    paths: Sequence[Path],
    folder: Path,
    open_file: Callable[[Path], SourceFile],
    *,
    kind: str = "fields",
    workers: int | None = None,
    dtype: str = "float32",
    allow_nan: bool = False,
    shard_bytes: int = SHARD_BYTES,
    fields: Sequence[str] | None = None,
    transform: Mapping[int, str] | None = None,
    gravity: Sequence[str] = (),
    task: tuple[int, int] = (0, 1),
) -> Index | None:
    """Writes the split `folder` from files, each opened by `open_file`; see `shard_split`."""
    options = {
        "kind": kind,
        "dtype": dtype,
        "shard_bytes": shard_bytes,
        "transform": dict(transform or {}),
        "allow_nonfinite": allow_nan,
    }
    totals = check_files(paths, fields, open_file)
    split, axes = folder.name, tuple(gravity)
    jobs = [
        _Job(path, open_file, folder, split, f"{i:05d}", fingerprint(path), options, axes, total)
        for i, (path, total) in enumerate(zip(paths, totals))
    ]
    if (folder / INDEX).exists():
        return _existing(folder, jobs)
    streams = [job.stream for job in jobs]
    jobs = jobs[task[0] :: task[1]]
    total = sum(job.total for job in jobs)
    if workers is None:
        workers = min(len(jobs) or 1, os.cpu_count() or 1, 1 + total // WORKER_BYTES)
    created, name = first_missing(partial_folder(folder)), f"{folder.parent.name}/{split}"
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=name, leave=False) as bar:
            (_run_here if workers <= 1 else _run_pool)(jobs, workers, bar)
    except BaseException:
        prune(folder, created)
        raise
    return publish(folder, streams) if task[1] == 1 else _publish_if_last(folder, streams)


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and a hash of the first, middle and last MiB: tells a changed file, cheaply."""
    size, piece = path.stat().st_size, 1 << 20
    digest = XXH3()
    with open(path, "rb") as file:
        for start in (0, max(0, size // 2 - piece // 2), max(0, size - piece)):
            file.seek(start)
            digest.update(file.read(piece))
    return {"name": path.name, "size": size, "hash": digest.hexdigest()}


def trajectory_key(path: Path, trajectory: int) -> str:
    """A trajectory's name in the shards: the file's, without dots, and its number."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', path.stem)}-{trajectory:04d}"


def check_files(
    paths: Sequence[Path],
    fields: Sequence[str] | None = None,
    open_file: Callable[[Path], SourceFile] = WellFile,
) -> list[int]:
    """Opens every file of a split; returns the bytes of float32 that each will give.

    Arguments:
        paths: the files.
        fields: channels that they must have, in order (not checked by default).
        open_file: opens one.

    Raises:
        OSError, ValueError: a file cannot be read, or differs from the first or from `fields`.
    """
    totals, first = [], None
    for path in paths:
        with open_file(path) as file:
            described = [{"name": name, "rank": rank} for name, rank in file.fields]
            layout = (channel_names(described, file.axes), file.axes, file.shape)
            first = first or layout
            frame = file.channels * 4
            for size in file.shape:
                frame *= size
            totals.append(file.trajectories * file.steps * frame)
        if layout != first:
            raise ValueError(f"{path}: {layout} differs from {paths[0].name}: {first}")
    if first and fields is not None and tuple(fields) != first[0]:
        raise ValueError(
            f"{paths[0]}: holds the fields {', '.join(first[0])}, the configuration expects "
            f"{', '.join(fields)}"
        )
    return totals


def _existing(folder: Path, jobs: Sequence[_Job]) -> Index:
    """The index of a split that is there already, if it was made from the same input."""
    header = open_index(folder).header
    options = jobs[0].options
    expected = {
        "sources": [job.source for job in jobs],
        "dtype": options["dtype"],
        "shard_bytes": options["shard_bytes"],
    }
    for name, value in expected.items():
        if header[name] != value:
            raise FileExistsError(
                f"{folder}: exists, made with {name} {header[name]}, now {value}; remove it or "
                "choose another out="
            )
    logger.info(f"{folder}: complete already, nothing to do")
    return open_index(folder)


def _publish_if_last(folder: Path, streams: Sequence[str]) -> Index | None:
    """Makes the split visible if every stream is complete; None if some are not yet.

    Tasks that end together take turns: a lock admits one, and the others find the split there.
    """
    partial = partial_folder(folder)
    try:
        if all((partial / "state" / f"{stream}.done").exists() for stream in streams):
            lock = acquire(partial / "publish.lock")
            try:
                if not (folder / INDEX).exists():
                    publish(folder, streams)
            finally:
                os.close(lock)
    except (FileNotFoundError, BlockingIOError):  # another task is publishing, or has
        if partial.exists():
            return None
    return open_index(folder) if (folder / INDEX).exists() else None


def _run_here(jobs: Sequence[_Job], workers: int, bar: tqdm) -> None:
    for job in jobs:
        _write_stream(job, bar.update)


def _run_pool(jobs: Sequence[_Job], workers: int, bar: tqdm) -> None:
    """Writes files in `workers` processes; the first error stops what has not begun."""
    context = multiprocessing.get_context("spawn")
    written = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (written,)) as pool:
        waiting = {pool.submit(_write_in_worker, job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(written.value - bar.n)
                for job in done:
                    job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(written: Any) -> None:
    """Prepares a worker process: where it counts bytes, and that it ends with its parent."""
    global _written
    _written = written
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=follow, daemon=True).start()


def _write_in_worker(job: _Job) -> None:
    def count(size: int) -> None:
        with _written.get_lock():
            _written.value += size

    _write_stream(job, count)


def _write_stream(job: _Job, progress: Callable[[int], object]) -> None:
    """Writes one file's trajectories, skipping those in complete shards."""
    writer = ShardWriter(
        job.folder, stream=job.stream, source=job.source, progress=progress, **job.options
    )
    if writer.closed:
        progress(job.total)
        return
    with _discarding(writer), job.open_file(job.path) as file:
        for trajectory in range(file.trajectories):
            meta = file.meta(trajectory, job.split)
            if job.gravity:
                meta["gravity"] = list(job.gravity)
            writer.add(trajectory_key(job.path, trajectory), WellTrajectory(file, trajectory), meta)
        writer.close()


@contextmanager
def _discarding(writer: ShardWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        writer.discard()
        raise
