"""How fast windows are read: this loader beside others, on the same windows, in one run.

    python -m benchmarks.data [out=benchmarks/data.csv] [folder=/tmp/lola_data_benchmark]
                              [workers=2] [batches=25] [rounds=5]

Cases: frames of 128² and of 256² with 5 channels, and latents of 64 × 16²; windows of L = 5 frames,
s = 4 steps apart, in batches of 16, the page cache warm. Every reader takes the windows of one
random order (the sequential ones: the same trajectories). Bare reads, the loader and the sequential
readers fill batches in turn, three being in use as for any reader that works ahead; the_well and
h5py hand over single windows. Readers take turns, `rounds` times; the best round of each counts, as
other processes can only slow it down.

    pread       bare positioned reads of the same bytes into memory in use, no checksum; by one
                thread, and by as many as the loader's workers
    loader      this loader, with and without checksums
    augmented   this loader with flips, permutations and rolls
    well        `the_well.data.WellDataset`, one process (fields only)
    h5py        a reader of a latent cache that keeps its file open, as lola's (latents only)
    webdataset  sequential: whole trajectories, cut in windows (`stream_windows`, no shuffle)
    mosaicml    StreamingDataset of whole trajectories, in order
    litdata     StreamingDataset of whole trajectories, in order

A reader whose package is not installed is skipped, and the table says so. One CSV row per reader
and case: GB/s of float32 handed over, and its ratio to one thread of bare reads. Two more rows: the
rate of sharding, beside copying the same file and hashing the copy.

mosaicml-streaming and litdata are installed for this benchmark only.
"""

from __future__ import annotations

import csv
import importlib
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import xxhash

from data_prep.well_to_shards import shard_split
from lola_ds.cli.common import parse_pairs
from lola_ds.data import (
    ElasticSampler,
    ShardDataset,
    ShardWriter,
    build_loader,
    reader,
    stream_windows,
)

LENGTH, STRIDE, BATCH, WARM, IN_USE = 5, 4, 16, 4, 3
AUGMENT = ("random_axis_flip", "random_axis_permute", "random_axis_roll")
CASES = {  # trajectories, frames, channels, grid
    "fields_128": (8, 101, 5, 128, 128),
    "fields_256": (4, 101, 5, 256, 256),
    "latents": (16, 101, 64, 16, 16),
}
FIELDS = (("energy", 0), ("density", 0), ("pressure", 0), ("momentum", 1))

Reader = Callable[[], int]  # runs once, returns the bytes handed over


def write_well(path: Path, data: np.ndarray) -> None:
    """Writes trajectories (N, T, 5, *S) as a file of The Well, periodic in both axes."""
    path.parent.mkdir(parents=True)
    count, steps, _, *grid = data.shape
    varying = {"sample_varying": False, "time_varying": False}
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="toy", grid_type="cartesian", n_spatial_dims=2)
        file.attrs.update(n_trajectories=count, simulation_parameters=["gamma"], gamma=1.4)
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        for name, size in zip(("time", "x", "y"), (steps, *grid)):
            values = np.arange(size, dtype=np.float32)
            dimensions.create_dataset(name, data=values).attrs.update(varying)
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = ["gamma"]
        scalars.create_dataset("gamma", data=1.4).attrs.update(varying)
        for axis, size in zip("xy", grid):
            condition = file.create_group(f"boundary_conditions/{axis}_periodic")
            condition.attrs.update(varying, bc_type="PERIODIC", associated_dims=[axis])
            condition.attrs["associated_fields"] = []
            condition["mask"] = np.isin(np.arange(size), (0, size - 1))
        channel = 0
        for rank in range(3):
            group = file.create_group(f"t{rank}_fields")
            names = [name for name, of in FIELDS if of == rank]
            group.attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
            for name in names:
                part = data[:, :, channel : channel + 2**rank]
                channel += 2**rank
                values = np.moveaxis(part, 2, -1) if rank else part[:, :, 0]
                stored = group.create_dataset(name, data=values)
                stored.attrs.update(dim_varying=[True] * 2, sample_varying=True, time_varying=True)


def write_case(folder: Path, shape: Sequence[int]) -> None:
    """Writes one case in every format whose package is there."""
    data = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if shape[2] == 5:
        write_well(folder / "well" / "toy" / "data" / "train" / "toy.hdf5", data)
        shard_split(folder / "well", folder / "shards", "toy", "train")
    else:
        meta = {"dataset": "toy", "split": "train", "source": "toy.h5", "scalars": {"gamma": 1.4}}
        meta |= {"boundary": {"x": [2, 2], "y": [2, 2]}}
        meta |= {"fields": [{"name": f"latent_{c}", "rank": 0} for c in range(shape[2])]}
        writer = ShardWriter(folder / "shards" / "toy" / "train", kind="latents")
        for i, x in enumerate(data):
            writer.add(f"toy-{i:04d}", x, {**meta, "trajectory": i})
        writer.finish()
        with h5py.File(folder / "cache.h5", "w") as file:
            file["state"] = data
    if installed("streaming"):
        from streaming import MDSWriter

        columns = {"x": "ndarray:float32:" + ",".join(map(str, shape[1:]))}
        with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
            for x in data:
                writer.write({"x": x})
    if installed("litdata"):
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="1GB")
        for i, x in enumerate(data):
            writer[i] = {"x": x}
        writer.done()
        writer.merge()


def cut(x: np.ndarray) -> Iterator[np.ndarray]:
    """Windows (L, C, *S) of a trajectory (T, C, *S), as views."""
    for start in range(len(x) - (LENGTH - 1) * STRIDE):
        yield x[start : start + (LENGTH - 1) * STRIDE + 1 : STRIDE]


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported, with all that it needs."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError):  # torch refuses libraries of other builds by the latter
        return False
    return True


class Case:
    """The readers of one case; each reads `batches` batches."""

    def __init__(self, folder: Path, shape: Sequence[int], workers: int, batches: int) -> None:
        self.folder, self.shape, self.workers = folder, shape, workers
        self.windows = ShardDataset(folder / "shards" / "toy" / "train", LENGTH, STRIDE)
        self.batches = min(batches, len(self.windows) // BATCH - WARM)
        self.count = self.batches * BATCH
        self.order = ElasticSampler(len(self.windows), BATCH).order(0)

    def readers(self) -> Iterator[tuple[str, Reader | str]]:
        """(name, reader, or why there is none)."""
        yield "pread", lambda: self.pread(1)
        yield f"pread, {self.workers} threads", lambda: self.pread(self.workers)
        yield "loader, 1 worker", lambda: self.loader(1)
        yield f"loader, {self.workers} workers", lambda: self.loader(self.workers)
        yield "loader, 1 worker, no checksum", lambda: self.unchecked(1)
        if self.windows.kind == "fields":
            yield f"augmented, {self.workers} workers", lambda: self.loader(self.workers, AUGMENT)
            yield "well", self.well if installed("the_well") else "the_well is not installed"
        else:
            yield "h5py", self.h5py
        yield "webdataset", self.webdataset
        for name, package in (("mosaicml", "streaming"), ("litdata", "litdata")):
            there = installed(package)
            yield name, getattr(self, name) if there else f"{package} is not installed"

    def pread(self, threads: int) -> int:
        index = self.windows.indexes[0]
        trajectory, start = np.divmod(self.order, self.shape[1] - (LENGTH - 1) * STRIDE)
        frames = index.first[trajectory][:, None] + start[:, None] + np.arange(LENGTH) * STRIDE
        places = frames[WARM * BATCH :][: self.count].reshape(self.batches, -1)
        offsets, shards = index.frame_offsets[places], index.frame_shards[places]
        size = index.frame_bytes
        files = [os.open(index.folder / name, os.O_RDONLY) for name in index.shards]
        memory = [np.zeros(BATCH * LENGTH * size, np.uint8).data for _ in range(IN_USE)]

        def read(part: int) -> None:
            for number in range(part, self.batches, threads):
                rows = zip(shards[number].tolist(), offsets[number].tolist())
                batch = memory[number % IN_USE]
                for i, (shard, offset) in enumerate(rows):
                    os.preadv(files[shard], (batch[i * size : (i + 1) * size],), offset)

        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
        self.seconds = time.perf_counter() - begin
        for file in files:
            os.close(file)
        return places.size * size

    def loader(self, workers: int, augment: Sequence[str] = ()) -> int:
        sampler = ElasticSampler(len(self.windows), BATCH)
        with build_loader(self.windows, sampler, workers=workers, augment=augment) as loader:
            batches = iter(loader)
            for _ in islice(batches, WARM):
                pass
            begin = time.perf_counter()
            size = sum(batch.x.nbytes for batch in islice(batches, self.batches))
            self.seconds = time.perf_counter() - begin
        return size

    def unchecked(self, workers: int) -> int:
        """The loader with a hash that costs nothing and agrees with everything."""

        class Agreeable(int):
            def __ne__(self, other: object) -> bool:
                return False

            __hash__ = int.__hash__

        class Digest:
            def update(self, data: object) -> None: ...

            def intdigest(self) -> Agreeable:
                return Agreeable()

        with (
            mock.patch.object(reader, "xxh3_64_intdigest", return_value=Agreeable()),
            mock.patch.object(reader, "xxh3_64", Digest),
        ):
            return self.loader(workers)

    def well(self) -> int:
        from the_well.data import WellDataset

        folder = self.folder / "well" / "toy" / "data" / "train"
        dataset = WellDataset(
            path=str(folder),
            n_steps_input=LENGTH,
            n_steps_output=0,
            min_dt_stride=STRIDE,
            max_dt_stride=STRIDE,
            max_cache_size=0,
            use_normalization=False,
        )
        dataset[0]
        chosen = self.order[: max(BATCH, self.count // 8)].tolist()
        begin = time.perf_counter()
        size = sum(dataset[i % len(dataset)]["input_fields"].nbytes for i in chosen)
        self.seconds = time.perf_counter() - begin
        return size

    def h5py(self) -> int:
        span = (LENGTH - 1) * STRIDE + 1
        with h5py.File(self.folder / "cache.h5") as file:
            state = file["state"]
            starts = self.shape[1] - span + 1
            chosen = [divmod(i, starts) for i in self.order[: self.count].tolist()]
            begin = time.perf_counter()
            size = sum(state[i, t : t + span : STRIDE].nbytes for i, t in chosen)
            self.seconds = time.perf_counter() - begin
        return size

    def sequential(self, windows: Iterator) -> int:
        shape = (IN_USE * BATCH, LENGTH, *self.shape[2:])
        memory, size = np.zeros(shape, np.float32), 0
        begin = time.perf_counter()
        for i, window in enumerate(islice(windows, self.count)):
            memory[i % len(memory)] = window
            size += window.nbytes
        self.seconds = time.perf_counter() - begin
        return size

    def webdataset(self) -> int:
        paths = sorted(self.windows.indexes[0].folder.glob("*.tar"))
        stream = stream_windows(paths, LENGTH, STRIDE, shuffle=0)
        return self.sequential(window["x"].transpose(0, 1).numpy() for window in stream)

    def mosaicml(self) -> int:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(self.folder / "mds"), batch_size=1, shuffle=False)
        return self.sequential(x for sample in dataset for x in cut(sample["x"]))

    def litdata(self) -> int:
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(self.folder / "litdata"), shuffle=False)
        return self.sequential(x for sample in dataset for x in cut(np.asarray(sample["x"])))


def measure(case: Case, rounds: int) -> Iterator[tuple[str, float | None, str]]:
    """(reader, best GB/s or None, remark)."""
    readers = dict(case.readers())
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in readers.items():
            if callable(run):
                size = run()
                best[name] = max(best.get(name, 0), size / case.seconds / 1e9)
    for name, run in readers.items():
        yield name, best.get(name), run if isinstance(run, str) else ""


def measure_sharding(folder: Path, rounds: int) -> Iterator[tuple[str, float, str]]:
    """Rates of writing shards, and of `cp`, sync and hashing the copy, of the same file."""
    source = folder / "well" / "toy" / "data" / "train" / "toy.hdf5"
    best = {"shard": 0.0, "cp and checksum": 0.0}
    for _ in range(rounds):
        for name in best:
            target = folder / "target"
            begin = time.perf_counter()
            if name == "shard":
                shard_split(folder / "well", target, "toy", "train", workers=1)
            else:
                target.mkdir()
                subprocess.run(["cp", source, target / "copy"], check=True)
                with open(target / "copy", "rb") as file:
                    os.fsync(file.fileno())
                    digest = xxhash.xxh3_64()
                    while piece := file.read(1 << 20):
                        digest.update(piece)
            seconds = time.perf_counter() - begin
            shutil.rmtree(target)
            best[name] = max(best[name], source.stat().st_size / seconds / 1e9)
    for name, rate in best.items():
        yield name, rate, ""


def describe_machine() -> dict[str, str]:
    """Machine, versions and commit, the same in every row."""
    packages = ("numpy", "torch", "xxhash", "h5py", "the_well", "webdataset")
    packages += ("mosaicml-streaming", "litdata")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} -")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": f"python {platform.python_version()}; " + "; ".join(versions),
        "commit": commit.stdout.strip(),
    }


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    defaults = {"out": "benchmarks/data.csv", "folder": "/tmp/lola_data_benchmark"}
    values = parse_pairs(words, {**defaults, "workers": 2, "batches": 25, "rounds": 5})
    warnings.simplefilter("ignore")
    root, rows, machine = Path(values["folder"]), [], describe_machine()
    for name, shape in CASES.items():
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        write_case(folder, shape)
        case = Case(folder, shape, values["workers"], values["batches"])
        results = list(measure(case, values["rounds"]))
        bare = results[0][1]
        if name == "fields_256":
            results += measure_sharding(folder, values["rounds"])
        for reader_name, rate, remark in results:
            row = {"case": name, "reader": reader_name, "gb_per_s": "", "of_pread": ""}
            if rate is not None and bare is not None:
                row |= {"gb_per_s": f"{rate:.3f}", "of_pread": f"{rate / bare:.3f}"}
            rows.append({**row, "remark": remark, **machine})
            rates = f"{row['gb_per_s']:>8} {row['of_pread']:>7}"
            print(f"{name:<11} {reader_name:<32} {rates} {remark}", flush=True)
        shutil.rmtree(folder)
    with open(values["out"], "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
