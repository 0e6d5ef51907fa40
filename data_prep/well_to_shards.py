"""The Well's HDF5 -> shards, in parallel over files.

Each file is one stream of `lola_ds.data.ShardWriter`, so what is written does not depend on the
number of workers, and a run that was killed goes on where it stopped.
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
from typing import Any

import xxhash
from tqdm import tqdm

from lola_ds.data.format import INDEX, channel_names
from lola_ds.data.index import Index, open_index
from lola_ds.data.writer import ShardWriter, first_missing, partial_folder, prune, publish

from .well import WellFile, WellTrajectory, list_files

SHARD_BYTES = 2_000_000_000
WORKER_BYTES = 1_000_000_000  # a second worker process pays off from about this much input on


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs to write one file's stream."""

    path: Path
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
) -> Index:
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

    Returns:
        The split's index.

    Raises:
        FileNotFoundError, OSError: a folder is missing, or a file is truncated or unreadable.
        FileExistsError: the split exists and was made from other input or with other settings.
        ValueError: files differ in fields or grid, NaN or infinity (naming file, trajectory, step
            and field).
    """
    folder = Path(out) / dataset / split
    paths = list_files(source, dataset, split, include_filters)
    options = {
        "dtype": dtype,
        "shard_bytes": shard_bytes,
        "transform": dict(transform or {}),
        "allow_nonfinite": allow_nan,
    }
    totals = check_files(paths, fields)
    jobs = [
        _Job(path, folder, split, f"{i:05d}", fingerprint(path), options, tuple(gravity), total)
        for i, (path, total) in enumerate(zip(paths, totals))
    ]
    if (folder / INDEX).exists():
        return _existing(folder, jobs)
    if workers is None:
        workers = min(len(jobs), os.cpu_count() or 1, 1 + sum(totals) // WORKER_BYTES)
    created = first_missing(partial_folder(folder))
    try:
        with tqdm(
            total=sum(totals), unit="B", unit_scale=True, desc=f"{dataset}/{split}", leave=False
        ) as bar:
            (_run_here if workers <= 1 else _run_pool)(jobs, workers, bar)
    except BaseException:
        prune(folder, created)
        raise
    return publish(folder, [job.stream for job in jobs])


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and a hash of the first, middle and last MiB: tells a changed file, cheaply."""
    size, piece = path.stat().st_size, 1 << 20
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        for start in (0, max(0, size // 2 - piece // 2), max(0, size - piece)):
            file.seek(start)
            digest.update(file.read(piece))
    return {"name": path.name, "size": size, "hash": digest.hexdigest()}


def trajectory_key(path: Path, trajectory: int) -> str:
    """A trajectory's name in the shards: the file's, without dots, and its number."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', path.stem)}-{trajectory:04d}"


def check_files(paths: Sequence[Path], fields: Sequence[str] | None = None) -> list[int]:
    """Opens every file of a split; returns the bytes of float32 that each will give.

    Arguments:
        paths: the files.
        fields: channels that they must have, in order (not checked by default).

    Raises:
        OSError, ValueError: a file cannot be read, or differs from the first or from `fields`.
    """
    totals, first = [], None
    for path in paths:
        with WellFile(path) as file:
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
    print(f"{folder}: complete already, nothing to do")
    return open_index(folder)


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
    with _discarding(writer), WellFile(job.path) as file:
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
