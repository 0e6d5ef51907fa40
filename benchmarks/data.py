"""Reading windows: throughput of this loader and of others, on the same windows, in one run.

    python -m benchmarks.data [out=benchmarks/data.csv] [folder=/tmp/lola_data_benchmark]
                              [workers=2] [rounds=5]

Cases: frames of 128² and of 256² with 5 channels in batches of 16, and latents of 64 × 16² in
batches of 64; windows of L = 5 frames, s = 4 steps apart; a warm page cache. Readers fill three
batches in turn, like any reader that prefetches; `well` and `h5py` return single windows. Readers
take turns, `rounds` times; the best round of each counts, as other processes can
only slow it down.

Shuffled: the same windows in the same order (slow readers read only the first of them):

    pread       plain positioned reads of the same bytes without checksums; by one thread, and by
                as many as the loader's workers
    loader      this loader after every frame was compared with its checksum; `hashed once`: an
                epoch that compares each frame at its first read; `verify_reads`: at every read
    augmented   this loader with flips, permutations and rolls
    well        `the_well.data.WellDataset`, one process (fields only)
    h5py        a reader of a latent cache that keeps its file open, like lola's (latents only);
                alone, and in torch's DataLoader with as many processes as the loader has workers
    mosaicml    StreamingDataset of whole trajectories; reads one and takes one window
    litdata     the same with litdata

In order: the windows of each trajectory one after the other, while it is in the CPU's cache:

    loader      this loader in that order
    webdataset  whole trajectories, cut into windows (`stream_windows`, no shuffle)
    mosaicml    StreamingDataset of whole trajectories, cut into windows
    litdata     the same with litdata

A reader whose package is not installed is skipped, and the table says so. One CSV row per reader
and case: GB/s of float32 returned, and the ratio to one thread of plain reads. Further rows: the
rate of sharding, and that of copying the same file and hashing the copy; the seconds to open 10,000
trajectories, and from then to the first batch after a resume at window 10^7.

mosaicml-streaming and litdata are used by this benchmark only.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import describe_machine, write_rows
from data_prep.well_to_shards import shard_split
from lola_ds.config import parse_overrides
from lola_ds.data import ElasticSampler, ShardDataset, ShardWriter, build_loader, stream_windows
from lola_ds.data.shuffle import FullShuffle

LENGTH, STRIDE, IN_USE, EPOCHS = 5, 4, 3, 6
AUGMENT = ("random_axis_flip", "random_axis_permute", "random_axis_roll")
CASES = {  # trajectories, frames, channels, grid; batch
    "fields_128": ((8, 101, 5, 128, 128), 16),
    "fields_256": ((4, 101, 5, 256, 256), 16),
    "latents": ((24, 101, 64, 16, 16), 64),
}
PACKAGES = ("numpy", "torch", "xxhash", "h5py", "the_well", "webdataset")
PACKAGES += ("mosaicml-streaming", "litdata")
FIELDS = (("energy", 0), ("density", 0), ("pressure", 0), ("momentum", 1))

Reader = Callable[[], int]
"""Reads once and returns the number of bytes."""


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
    """Writes the data of one case in every format whose package is installed."""
    data = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if shape[2] == 5:
        write_well(folder / "well" / "toy" / "data" / "train" / "toy.hdf5", data)
        shard_split(folder / "well", folder / "shards", "toy", "train")
    else:
        write_latents(folder / "shards" / "toy" / "train", data)
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


def write_latents(folder: Path, data: np.ndarray) -> None:
    """Writes trajectories (N, T, C, X, Y) as shards of latents."""
    meta = {"dataset": "toy", "split": "train", "source": "toy.h5", "scalars": {"gamma": 1.4}}
    meta |= {"boundary": {"x": [2, 2], "y": [2, 2]}}
    meta |= {"fields": [{"name": f"latent_{c}", "rank": 0} for c in range(data.shape[2])]}
    writer = ShardWriter(folder, kind="latents")
    for i, x in enumerate(data):
        writer.add(f"toy-{i:04d}", x, {**meta, "trajectory": i})
    writer.finish()


def cut(x: np.ndarray) -> Iterator[np.ndarray]:
    """Windows (L, C, *S) of a trajectory (T, C, *S), as views."""
    for start in range(len(x) - (LENGTH - 1) * STRIDE):
        yield x[start : start + (LENGTH - 1) * STRIDE + 1 : STRIDE]


@cache
def installed(package: str) -> bool:
    """Whether a package and its dependencies can be imported."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError):  # torch raises RuntimeError for libraries of another build
        return False
    return True


class CachedWindows(Dataset):
    """Windows of a latent cache, (L, C, *S), read from the HDF5 file."""

    def __init__(self, path: Path) -> None:
        self._state = h5py.File(path)["state"]
        self._starts = self._state.shape[1] - (LENGTH - 1) * STRIDE

    def __getitem__(self, i: int) -> Tensor:
        trajectory, start = divmod(i, self._starts)
        stop = start + (LENGTH - 1) * STRIDE + 1
        return torch.from_numpy(self._state[trajectory, start:stop:STRIDE])


@dataclass(frozen=True)
class InOrder(FullShuffle):
    """The order that visits every window once per epoch, trajectory by trajectory."""

    def __call__(self, epoch: int) -> np.ndarray:
        return np.arange(self.windows)


class Case:
    """The readers of one case; each sets `seconds` and returns the number of bytes."""

    def __init__(self, folder: Path, shape: Sequence[int], batch: int, workers: int) -> None:
        self.folder, self.shape, self.batch, self.workers = folder, shape, batch, workers
        self.path = folder / "shards" / "toy" / "train"
        self.windows = ShardDataset(self.path, LENGTH, STRIDE)
        self.count = len(self.windows)
        self.order = ElasticSampler(self.count, batch).order(1)

    def readers(self) -> Iterator[tuple[str, Reader | str]]:
        """Yields the names of readers with a function, or with the reason why there is none."""
        many, shuffled = self.workers, self.order[: self.count // 32]
        others = {"mosaicml": "streaming", "litdata": "litdata"}
        yield "pread", lambda: self.pread(1)
        yield f"pread, {many} threads", lambda: self.pread(many)
        yield "loader, 1 worker", lambda: self.loader(1)
        yield f"loader, {many} workers", lambda: self.loader(many)
        yield f"loader, {many} workers, hashed once", lambda: self.loader(many, afresh=True)
        yield f"loader, {many} workers, verify_reads", lambda: self.loader(many, verify_reads=True)
        if self.windows.kind == "fields":
            yield f"augmented, {many} workers", lambda: self.loader(many, AUGMENT)
            yield "well", self.well if installed("the_well") else "the_well is not installed"
        else:
            yield "h5py", self.h5py
            yield f"h5py, DataLoader, {many} workers", self.h5py_batches
        for name, package in others.items():
            reader = partial(getattr(self, name), shuffled)
            yield name, reader if installed(package) else f"{package} is not installed"
        yield "in order: loader, 1 worker", lambda: self.loader(1, in_order=True)
        yield f"in order: loader, {many} workers", lambda: self.loader(many, in_order=True)
        yield "in order: webdataset", self.webdataset
        for name, package in others.items():
            reader = getattr(self, name)
            yield f"in order: {name}", reader if installed(package) else f"{package} is missing"

    def pread(self, threads: int) -> int:
        index = self.windows.indexes[0]
        trajectory, start = np.divmod(self.order, self.shape[1] - (LENGTH - 1) * STRIDE)
        frames = index.first[trajectory][:, None] + start[:, None] + np.arange(LENGTH) * STRIDE
        bounds = range(0, self.count, self.batch)
        places = [
            [part.tolist() for part in index.places(frames[a : a + self.batch].ravel())]
            for a in bounds
        ]
        size = index.frame_bytes
        files = [os.open(index.folder / name, os.O_RDONLY) for name in index.shards]
        memory = [np.ones(self.batch * LENGTH * size, np.uint8).data for _ in range(IN_USE)]

        def read(part: int) -> None:
            for number in range(part, len(places), threads):
                batch = memory[number % IN_USE]
                for i, (shard, offset) in enumerate(zip(*places[number])):
                    os.preadv(files[shard], (batch[i * size : (i + 1) * size],), offset)

        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
        self.seconds = time.perf_counter() - begin
        for file in files:
            os.close(file)
        return frames.size * size

    def loader(
        self,
        workers: int,
        augment: Sequence[str] = (),
        *,
        afresh: bool = False,
        verify_reads: bool = False,
        in_order: bool = False,
    ) -> int:
        """Reads EPOCHS epochs after one that hashes every frame; the fastest counts.

        Arguments:
            workers, augment, verify_reads: The arguments of the loader.
            afresh: Whether to change the shards' modification times first, so that every frame
                is hashed once more.
            in_order: Whether to visit the windows in order instead of shuffled.
        """
        windows = ShardDataset(self.path, LENGTH, STRIDE, verify_reads=verify_reads)
        order = InOrder(self.count, 0) if in_order else None
        sampler, seconds = ElasticSampler(self.count, self.batch, order=order), []
        steps, size = len(sampler), 0
        with build_loader(windows, sampler, workers=workers, augment=augment) as loader:
            batches = iter(loader)
            for _ in range(1 + EPOCHS):
                if afresh:
                    for path in self.path.glob("*.tar"):
                        path.touch()
                begin = time.perf_counter()
                size = sum(batch.x.nbytes for batch in islice(batches, steps))
                seconds.append(time.perf_counter() - begin)
        self.seconds = min(seconds[1:])
        return size * self.count // (steps * self.batch)  # without padding

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
        chosen = self.order[: self.count // 8].tolist()
        begin = time.perf_counter()
        size = sum(dataset[i % len(dataset)]["input_fields"].nbytes for i in chosen)
        self.seconds = time.perf_counter() - begin
        return size

    def h5py(self) -> int:
        windows = CachedWindows(self.folder / "cache.h5")
        begin = time.perf_counter()
        size = sum(windows[i].nbytes for i in self.order.tolist())
        self.seconds = time.perf_counter() - begin
        return size

    def h5py_batches(self) -> int:
        loader = DataLoader(
            CachedWindows(self.folder / "cache.h5"),
            batch_size=self.batch,
            sampler=self.order.tolist(),
            num_workers=self.workers,
            persistent_workers=True,
        )
        for _ in loader:  # the processes start with the first epoch
            pass
        begin = time.perf_counter()
        size = sum(batch.nbytes for batch in loader)
        self.seconds = time.perf_counter() - begin
        return size

    def sequential(self, windows: Iterator) -> int:
        shape = (IN_USE * self.batch, LENGTH, *self.shape[2:])
        memory, size = np.ones(shape, np.float32), 0
        begin = time.perf_counter()
        for i, window in enumerate(windows):
            memory[i % len(memory)] = window
            size += window.nbytes
        self.seconds = time.perf_counter() - begin
        return size

    def webdataset(self) -> int:
        paths = sorted(self.windows.indexes[0].folder.glob("*.tar"))
        stream = stream_windows(paths, LENGTH, STRIDE, shuffle=0)
        return self.sequential(window["x"].transpose(0, 1).numpy() for window in stream)

    def mosaicml(self, shuffled: np.ndarray | None = None) -> int:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(self.folder / "mds"), batch_size=1, shuffle=False)
        return self.trajectories(dataset, shuffled)

    def litdata(self, shuffled: np.ndarray | None = None) -> int:
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(self.folder / "litdata"), shuffle=False)
        return self.trajectories(dataset, shuffled)

    def trajectories(self, dataset: Any, shuffled: np.ndarray | None) -> int:
        """Reads windows of whole trajectories: all in order, or those in `shuffled`."""
        if shuffled is None:
            return self.sequential(x for sample in dataset for x in cut(np.asarray(sample["x"])))
        dataset[0]  # opens the files
        places = map(self.windows.locate, shuffled.tolist())
        span = (LENGTH - 1) * STRIDE + 1
        return self.sequential(
            np.asarray(dataset[trajectory]["x"])[start : start + span : STRIDE]
            for trajectory, start in places
        )


def measure(case: Case, rounds: int) -> Iterator[tuple[str, float | None, str]]:
    """Yields every reader with its best GB/s, or with None and the reason."""
    readers = dict(case.readers())
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in readers.items():
            if callable(run):
                size = run()
                best[name] = max(best.get(name, 0), size / case.seconds / 1e9)
    for name, run in readers.items():
        yield name, best.get(name), run if isinstance(run, str) else ""


def measure_sharding(folder: Path, rounds: int) -> Iterator[tuple[str, float]]:
    """Yields the rates of writing shards, and of `cp`, fsync and hashing, of the same file."""
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
    yield from best.items()


def measure_long(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields the seconds to open 10,000 trajectories and to load the batch at window 10^7."""
    count, frames = 10_000, 1_101
    write_latents(folder, np.zeros((1, frames, 1, 4, 4), np.float32))
    index = ShardDataset(folder).indexes[0]
    own = [{"key": f"toy-{i:05d}", "trajectory": i} for i in range(count)]
    common = {**index.header["common"], "fields": index.header["fields"]}
    segments = np.repeat(index.segments, count, axis=0)  # all of them in the same bytes
    segments[:, 0] = np.arange(count)
    header = {**index.header, "common": common, "trajectories": own}
    checksums = np.tile(index.checksums, count)
    replace(index, header=header, segments=segments, checksums=checksums).save(folder / "index.npz")

    begin = time.perf_counter()
    windows = ShardDataset(folder, LENGTH, STRIDE)
    opened = time.perf_counter()
    sampler = ElasticSampler(len(windows), 64)
    with build_loader(windows, sampler) as loader:
        loader.load_state_dict({**loader.state_dict(), "consumed": 10**7 // 64 * 64})
        next(iter(loader))
        done = time.perf_counter()
    yield "opening 10,000 trajectories", opened - begin
    yield f"first batch after a resume at window 10^7 of {len(windows)}", done - opened


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/data.csv"
    folder: str = "/tmp/lola_data_benchmark"
    workers: int = 2
    rounds: int = 5


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    options = parse_overrides(Options, words)
    warnings.simplefilter("ignore")
    root, rows, machine = Path(options.folder), [], describe_machine(PACKAGES)
    shutil.rmtree(root, ignore_errors=True)
    empty = dict.fromkeys(("case", "reader", "gb_per_s", "of_pread", "seconds", "remark"), "")

    def record(**entries: str) -> None:
        rows.append({**empty, **entries, **machine})
        print("  ".join(entries.values()), flush=True)

    for name, (shape, batch) in CASES.items():
        write_case(root / name, shape)
        case = Case(root / name, shape, batch, options.workers)
        results = list(measure(case, options.rounds))
        bare = results[0][1]
        for reader, rate, remark in results:
            if rate is None or bare is None:
                record(case=name, reader=reader, remark=remark)
            else:
                ratio = f"{rate / bare:.3f}"
                record(case=name, reader=reader, gb_per_s=f"{rate:.3f}", of_pread=ratio)
        if name == "fields_256":
            for reader, rate in measure_sharding(root / name, options.rounds):
                record(case="sharding", reader=reader, gb_per_s=f"{rate:.3f}")
        shutil.rmtree(root / name)
    for reader, seconds in measure_long(root / "long" / "toy" / "train"):
        record(case="long", reader=reader, seconds=f"{seconds:.3f}")
    shutil.rmtree(root)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
