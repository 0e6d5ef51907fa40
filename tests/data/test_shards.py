"""Format, writer, index, reader, verification."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers import make_meta, make_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.data import (
    ShardDataset,
    ShardError,
    ShardWriter,
    open_index,
    publish,
    reader,
    shard_file,
    verify_split,
)
from lola_ds.data.format import checksum, decode_frames, encode_frames, npy_header, tar_header
from lola_ds.data.statistics import Moments

FRAME = 3 * 8 * 8 * 4


def files(folder):
    """Every file below a folder: {path: bytes}."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def arrays(n=5, frames=12, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return list(rng.standard_normal((n, frames, channels, 8, 8)).astype(np.float32))


def test_read_back_bitwise(tmp_path):
    data = arrays()
    index = make_shards(tmp_path / "toy" / "train", data, shard_bytes=30 * FRAME)
    assert len(index.shards) > 1
    windows = ShardDataset(tmp_path / "toy" / "train")
    for i, array in enumerate(data):
        assert np.array_equal(windows.read_trajectory(i).transpose(0, 1).numpy(), array)
    assert windows.meta(3)["scalars"] == {"gamma": 1.7}
    assert windows.meta(3)["key"] == "made-0003"
    assert not (tmp_path / "toy" / ".train.partial").exists()


# webdataset leaves the tar open for the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_plain_tar_and_webdataset_read_it(tmp_path):
    data = arrays(3)
    folder = tmp_path / "toy" / "train"
    index = make_shards(folder, data)
    shard = folder / index.shards[0]
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", shard, "-C", out], check=True)
    for i, array in enumerate(data):
        assert np.array_equal(np.load(out / f"made-{i:04d}.fields.npy"), array)
        meta = json.loads((out / f"made-{i:04d}.meta.json").read_text())
        assert meta["frames"] == [0, 12, 12]
        assert meta["boundary"] == {"x": [2, 2], "y": [2, 2]}
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"made-{i:04d}" for i in range(3)]
    assert all(np.array_equal(s["fields.npy"], a) for s, a in zip(samples, data))
    assert samples[1]["meta.json"]["trajectory"] == 1


def test_long_trajectories_are_cut_along_time(tmp_path):
    data = arrays(2, frames=25)
    index = make_shards(tmp_path / "toy" / "train", data, shard_bytes=10 * FRAME)
    assert index.segments[:, :3].tolist() == [
        [i, a, b] for i in range(2) for a, b in [(0, 8), (8, 16), (16, 25)]
    ]
    assert index.frames.tolist() == [25, 25]
    windows = ShardDataset(index.folder, length=5, stride=4)
    assert len(windows) == 2 * 9
    for i in (0, 8, 17):
        trajectory, start = windows.locate(i)
        expected = data[trajectory][start : start + 17 : 4]
        assert np.array_equal(windows[i]["x"].transpose(0, 1).numpy(), expected)
    assert not verify_split(index.folder).problems


def test_bytes_do_not_depend_on_when_or_how_often(tmp_path):
    folders = [tmp_path / name / "toy" / "train" for name in "ab"]
    for folder in folders:
        make_shards(folder, arrays(), shard_bytes=30 * FRAME)
    assert files(folders[0]) == files(folders[1])


def test_streams_are_merged_in_order(tmp_path):
    folder, data = tmp_path / "toy" / "train", arrays(4)
    for stream in ("1", "0"):  # whatever finished first
        writer = ShardWriter(folder, stream=stream)
        for i in range(2):
            number = 2 * int(stream) + i
            meta = make_meta(folder, number, data[number].shape)
            writer.add(f"t{number}", data[number], meta)
        writer.close()
    index = publish(folder, ["0", "1"])
    assert [index.meta(i)["key"] for i in range(4)] == ["t0", "t1", "t2", "t3"]
    assert np.array_equal(ShardDataset(folder).read_trajectory(3).transpose(0, 1), data[3])


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
import shutil
from lola_ds.data import shard_file, writer
sys.path.insert(0, {tests!r})
from helpers import make_shards
calls, limit = 0, 0
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return call
for module, name in (writer, "write_atomic"), (writer, "checksum"):
    setattr(module, name, counted(getattr(module, name)))
shard_file.GrowingShard.write = counted(shard_file.GrowingShard.write)
for name in ("replace", "rename", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
shutil.rmtree = counted(shutil.rmtree)
writer.COPY_BYTES = 4 * 768
data = np.random.default_rng(0).standard_normal((6, 12, 3, 8, 8))

def run(folder):  # in a process that is killed at call `limit`; its exit status
    child = os.fork()
    if not child:
        try:
            make_shards(folder, data, shard_bytes=20_000)
        except BaseException:
            os._exit(1)
        Path("calls").write_text(str(calls))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def files(folder):
    return {{p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}}

os.chdir(sys.argv[1])
limit, whole = 0, Path("whole/toy/train")
assert run(whole) == 0
expected, points = files(whole), np.arange(1, int(Path("calls").read_text()) + 1)
for point in np.random.default_rng(1).choice(points, int(sys.argv[2]), replace=False).tolist():
    folder = Path(f"{{point}}/toy/train")
    limit = point
    assert run(folder) == -9, point
    assert not folder.exists() or files(folder) == expected, point  # never a part of it
    limit = 0
    if not folder.exists():
        assert run(folder) == 0, point
    assert files(folder) == expected, point
print("done")
"""


@pytest.mark.parametrize("points", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path, points):
    script = KILLED.format(tests=os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, "-c", script, str(tmp_path), str(points)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stderr


def test_every_point_of_interruption(tmp_path, monkeypatch):
    """An exception at each write in turn, as a full disk gives it, then the same calls again."""
    from lola_ds.data import shard_file as module

    data = np.random.default_rng(0).standard_normal((6, 12, 3, 8, 8))
    whole = tmp_path / "whole" / "toy" / "train"
    make_shards(whole, data, shard_bytes=20_000)
    expected = files(whole)
    write, fails = module.GrowingShard.write, 0
    for limit in range(1, 60, 3):
        calls = 0

        def failing(shard, block, limit=limit):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise OSError(28, "No space left on device", str(shard.path))
            return write(shard, block)

        folder = tmp_path / str(limit) / "toy" / "train"
        monkeypatch.setattr(module.GrowingShard, "write", failing)
        try:
            make_shards(folder, data, shard_bytes=20_000)
        except OSError:
            fails += 1
            assert not folder.exists()
            assert not list((tmp_path / str(limit)).rglob("*.tmp"))
        monkeypatch.setattr(module.GrowingShard, "write", write)
        if not folder.exists():
            make_shards(folder, data, shard_bytes=20_000)
        assert files(folder) == expected
    assert fails > 5


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path):
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from helpers import make_shards\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))\n"
        "make_shards(sys.argv[1], shard_bytes=40_000)\n"
    )
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", code, str(tmp_path / "toy" / "train"), tests]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "complete shards are kept" in result.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was complete, so nothing is left


FULL = """
import shutil, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from helpers import make_shards
disk, out = Path(sys.argv[1]), Path(sys.argv[2])
def mount(*words):
    subprocess.run(["mount", *words, disk], check=True)
def attempt():
    try:
        make_shards(disk / "toy" / "train", shard_bytes=9_000)
    except OSError as error:
        print(error)
    print(len(list(disk.rglob("*.tar"))), (disk / "toy" / "train").exists())
mount("-t", "tmpfs", "-o", "size=64k", "none")
attempt()
mount("-o", "remount,ro")
attempt()
mount("-o", "remount,rw,size=1m")
attempt()
shutil.copytree(disk / "toy" / "train", out)
"""


def test_a_small_disk_is_filled_protected_and_enlarged(tmp_path):
    """Complete shards survive a full disk and a read-only one; then the bytes are as ever."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let users mount file systems of their own")
    disk, tests = tmp_path / "disk", os.path.dirname(os.path.dirname(__file__))
    disk.mkdir()
    command = [sys.executable, "-c", FULL, str(disk), str(tmp_path / "out"), tests]
    run = subprocess.run([*namespace, *command], capture_output=True, text=True, check=False)
    full, kept, protected, still, done = run.stdout.splitlines()
    assert "No space left on device" in full
    assert "run again to go on" in full
    assert "Read-only file system" in protected
    assert kept == still
    assert 0 < int(kept.split()[0]) < int(done.split()[0])
    assert [line.split()[1] for line in (kept, still, done)] == ["False", "False", "True"]
    index = make_shards(tmp_path / "whole" / "toy" / "train", shard_bytes=9_000)
    assert files(index.folder) == files(tmp_path / "out")


def test_resumed_writers_know_what_they_hold(tmp_path):
    folder, data = tmp_path / "toy" / "train", arrays(4)
    writer = ShardWriter(folder, shard_bytes=15 * FRAME)
    for i in range(3):
        writer.add(f"t{i}", data[i], make_meta(folder, i, data[i].shape))
    writer.discard()
    assert not folder.exists()
    writer = ShardWriter(folder, shard_bytes=15 * FRAME)
    assert [f"t{i}" in writer for i in range(4)] == [True, True, False, False]
    with pytest.raises(ValueError, match="begun with t0"):
        writer.add("other", data[0], make_meta(folder, 0, data[0].shape))
    with pytest.raises(ValueError, match="finish with the same input and settings"):
        ShardWriter(folder, shard_bytes=16 * FRAME)


def test_frames_that_come_back_otherwise_are_not_published(tmp_path, monkeypatch):
    """Read back while it grows, in pieces that end within pages, and at the end."""
    monkeypatch.setattr(shard_file, "READ_BACK", 100_000)
    data = np.random.default_rng(0).integers(0, 256, (300, 1_000), np.uint8)
    for wrong in (None, 0, 99, 131, 299):
        digests = [f"{checksum(frame):016x}" for frame in data]
        if wrong is not None:
            digests[wrong] = f"{0:016x}"
        shard = shard_file.GrowingShard(tmp_path / "a.tmp")
        for first in range(0, 300, 50):
            part = slice(first, first + 50)
            shard.write_frames(data[part].data, digests[part], "made-7", first)
        if wrong is None:
            shard.complete(tmp_path / "a.tar")
            assert (tmp_path / "a.tar").read_bytes() == data.tobytes() + bytes(1024)
            (tmp_path / "a.tar").unlink()
            continue
        with pytest.raises(ShardError, match=rf"made-7, frame {wrong} read back differs"):
            shard.complete(tmp_path / "a.tar")
        shard.discard()
        assert not list(tmp_path.iterdir())


def test_existing_splits_are_not_touched(tmp_path):
    folder = tmp_path / "toy" / "train"
    make_shards(folder)
    before = files(folder)
    with pytest.raises(FileExistsError, match="remove it or write elsewhere"):
        make_shards(folder)
    assert files(folder) == before


def test_nan_is_refused_or_recorded(tmp_path):
    folder, data = tmp_path / "toy" / "train", arrays(3)
    data[1][7, 2, 3, 3] = np.nan
    message = r"made-1\.hdf5: trajectory 1, step 7, field field1_y: NaN"
    with pytest.raises(ValueError, match=message):
        make_shards(folder, data)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match=message):
        index = make_shards(folder, data, allow_nonfinite=True)
    assert index.header["nonfinite"] == [[1, 7, "field1_y"]]
    assert index.header["statistics"]["count"] == [2304, 2304, 2303]
    assert not verify_split(folder).problems


def test_trajectories_must_agree(tmp_path):
    data = arrays(2)
    with pytest.raises(ValueError, match="differs from the trajectories before"):
        make_shards(tmp_path / "toy" / "train", [data[0], data[1][..., :4]])
    with pytest.raises(ValueError, match="does not hold the channels"):
        make_shards(tmp_path / "toy" / "train", data, ranks=(0,))
    writer = ShardWriter(tmp_path / "toy" / "train")
    with pytest.raises(ValueError, match="dots"):
        writer.add("a.b", data[0], make_meta(tmp_path, 0, data[0].shape))
    with pytest.raises(ValueError, match="no trajectories"):
        ShardWriter(tmp_path / "toy" / "train").finish()


def test_statistics(tmp_path):
    data = [np.abs(array) + 1e4 * (c + 1) for c, array in enumerate(arrays(4))]
    index = make_shards(tmp_path / "a" / "train", data, transform={0: "log1p"})
    stacked = np.stack(data).astype(np.float64)
    stacked[:, :, 0] = np.log1p(stacked[:, :, 0])
    found, axes = index.header["statistics"], (0, 1, 3, 4)
    np.testing.assert_allclose(found["mean"], stacked.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(found["std"], stacked.std(axes), rtol=1e-5)
    np.testing.assert_allclose(found["min"], stacked.min(axes), rtol=1e-6)
    np.testing.assert_allclose(found["max"], stacked.max(axes), rtol=1e-6)
    assert found["count"] == [4 * 12 * 64] * 3


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_moments_merge(sizes):
    rng = np.random.default_rng(sum(sizes))
    parts = [(1e3 + rng.standard_normal((2, size))).astype(np.float32) for size in sizes]
    merged = Moments.empty(2)
    for part in parts:
        merged = merged.merge(Moments.of(part[None]))
    merged = Moments.from_json(json.loads(json.dumps(merged.to_json())))
    whole = np.concatenate(parts, axis=1, dtype=np.float64)
    assert merged.count.tolist() == [whole.shape[1]] * 2
    if whole.size:
        np.testing.assert_allclose(merged.mean, whole.mean(1))
        np.testing.assert_allclose(merged.squares, whole.var(1) * whole.shape[1], atol=1e-8)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision(tmp_path, dtype, bits):
    data = arrays(2)
    index = make_shards(tmp_path / "toy" / "train", data, dtype=dtype)
    x = ShardDataset(index.folder, length=3)[1]["x"].transpose(0, 1).numpy()
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, data[0][1:4], rtol=2.0**-bits, atol=1e-7)
    assert 0 < index.header["statistics"]["rounding"][0] < 2.0**-bits
    assert not verify_split(index.folder).problems


def test_encoding_rounds_to_nearest():
    import torch

    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 100
    x[:3] = np.inf, -np.inf, np.nan
    for dtype in ("float16", "bfloat16"):
        expected = torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy()
        found = decode_frames(encode_frames(x, dtype), dtype)
        assert np.array_equal(found, expected, equal_nan=True)
    with pytest.raises(ValueError, match="overflow float16"):
        encode_frames(np.array([1e5], np.float32), "float16")


def test_headers(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / "x.npy"
    path.write_bytes(npy_header(x.shape, "float32") + x.tobytes())
    assert np.array_equal(np.load(path), x)
    assert len(npy_header(x.shape, "float32")) % 64 == 0
    name = "a" * 150 + ".fields.npy"
    shard = tmp_path / "x.tar"
    shard.write_bytes(tar_header(name, 3) + b"abc" + bytes(509) + bytes(1024))
    with tarfile.open(shard) as tar:
        assert tar.getnames() == [name]
    assert b"size=9000000000" in tar_header("huge", 9_000_000_000)


def test_flipped_bits_are_caught_before_a_sample_is_yielded(tmp_path):
    folder = tmp_path / "toy" / "train"
    index = make_shards(folder, arrays(3), shard_bytes=30 * FRAME)
    rng = np.random.default_rng(0)
    for _ in range(50):
        frame = int(rng.integers(len(index.checksums)))
        path = folder / index.shards[index.places(frame)[0]]
        offset = int(index.places(frame)[1])
        whole = bytearray(path.read_bytes())
        whole[offset + int(rng.integers(FRAME))] ^= 1 << int(rng.integers(8))
        sound = path.read_bytes()
        path.write_bytes(whole)
        trajectory, t = divmod(frame, 12)
        message = rf"{path.name}: checksum .* made-000{trajectory}, frame {t}, byte offset {offset}"
        with pytest.raises(ShardError, match=message):
            ShardDataset(folder)[frame]
        with pytest.raises(ShardError, match=message.replace("checksum .* ", "")):
            verify_split(folder).check()
        path.write_bytes(sound)
    verify_split(folder).check()


def count_reads(monkeypatch):
    """The (offsets, which are hashed) of every call into C from now on."""
    calls, read = [], reader.read_frames

    def counted(size, files, shards, offsets, digests, unverified, *rest):
        calls.append((offsets.tolist(), unverified.tolist()))
        return read(size, files, shards, offsets, digests, unverified, *rest)

    monkeypatch.setattr(reader, "read_frames", counted)
    return calls


def test_reads_only_the_frames_of_a_window(tmp_path, monkeypatch):
    """Read amplification is 1: bytes asked of the file system are the window's."""
    index = make_shards(tmp_path / "toy" / "train", arrays(2, frames=25))
    windows, calls = ShardDataset(index.folder, length=5, stride=4), count_reads(monkeypatch)
    windows[2]
    first = int(index.places(2)[1])
    assert [offsets for offsets, _ in calls] == [[first + 4 * i * FRAME for i in range(5)]]


def test_frames_of_several_windows_are_read_once(tmp_path, monkeypatch):
    """Overlapping windows in one call: whatever repeats is copied, bits and checks as ever."""
    data = arrays(2, frames=25)
    index, calls = make_shards(tmp_path / "toy" / "train", data), count_reads(monkeypatch)
    for length, stride, ids in (
        (5, 4, np.arange(18)),
        (3, 1, np.arange(46)),
        (3, 1, np.array([7, 5, 7, 6, 30, 4])),
        (2, 1, np.array([3, 3])),
        (1, 1, np.array([0, 49, 0])),
    ):
        windows = ShardDataset(index.folder, length, stride)
        found = np.empty((len(ids), length, 3, 8, 8), np.float32)
        calls.clear()
        windows.read_windows(ids, found)
        places = [windows.locate(int(i)) for i in ids]
        frames = {(i, start + k * stride) for i, start in places for k in range(length)}
        assert [len(offsets) for offsets, _ in calls] == [len(frames)]
        expected = [data[i][start : start + length * stride : stride] for i, start in places]
        assert np.array_equal(found, expected)

    path = index.folder / index.shards[0]
    whole = bytearray(path.read_bytes())
    whole[int(index.places(6)[1])] ^= 1
    path.write_bytes(whole)
    windows = ShardDataset(index.folder, 3)
    with pytest.raises(ShardError, match=r"made-0000, frame 6"):
        windows.read_windows(np.arange(5), np.empty((5, 3, 3, 8, 8), np.float32))


def test_frames_are_hashed_once_and_again_when_their_file_changes(tmp_path, monkeypatch):
    calls = count_reads(monkeypatch)
    index = make_shards(tmp_path / "toy" / "train", arrays(2))
    path = index.folder / index.shards[0]
    sound = path.read_bytes()
    os.utime(path, (1, 1))  # clocks of file systems tick a few times a second
    windows = ShardDataset(index.folder, length=3)
    for i in [*range(len(windows)), *range(len(windows))]:
        windows[i]
    assert sum(sum(unverified) for _, unverified in calls) == 24

    damaged = bytearray(sound)
    damaged[int(index.places(16)[1]) + 700] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=r"checksum mismatch in trajectory made-0001, frame 4"):
        windows[12]
    path.write_bytes(damaged[: int(index.places(15)[1]) + 250])
    with pytest.raises(ShardError, match=r"file ends after 250 bytes in .*, frame 3"):
        windows[12]
    path.write_bytes(sound)
    assert len(windows[12]["x"]) == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the memory")
def test_mapped_memory_does_not_grow(tmp_path, monkeypatch):
    """Of a shard of 16 MB, as soon as a megabyte was copied."""

    def mapped():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"RssFile:\s+(\d+) kB", status)[0])

    data = np.zeros((1, 64, 4, 128, 128), np.float32)
    index = make_shards(tmp_path / "toy" / "train", data)
    grown = {}
    for limit in (reader.MAPPED_BYTES, 1 << 20):
        monkeypatch.setattr(reader, "MAPPED_BYTES", limit)
        windows, before = ShardDataset(index.folder), mapped()
        for i in range(len(windows)):
            windows[i]
        grown[limit] = mapped() - before
        windows.read_trajectory(0)
        assert mapped() - before < 1 << 20
    assert grown[reader.MAPPED_BYTES] < 3 << 20 < 14 << 20 < max(grown.values())


def test_changes_in_the_middle_of_a_read_and_decay_of_the_disk(tmp_path, monkeypatch):
    index = make_shards(tmp_path / "toy" / "train", arrays(1))
    path, stamps = index.folder / index.shards[0], iter([1, 1, 1, 2])
    whole = bytearray(path.read_bytes())
    whole[int(index.places(4)[1])] ^= 1
    with monkeypatch.context() as patch:
        patch.setattr(reader.OpenFile, "stamp", lambda file: next(stamps))  # before, after
        windows = ShardDataset(index.folder, length=3)
        windows[3]
        path.write_bytes(whole)
        with pytest.raises(ShardError, match=r"checksum mismatch in .*, frame 4"):
            windows[3]
    monkeypatch.setattr(reader.OpenFile, "stamp", lambda file: 1)  # nothing tells
    for verify_reads in (False, True):
        whole[int(index.places(4)[1])] ^= 1
        path.write_bytes(whole)
        windows = ShardDataset(index.folder, verify_reads=verify_reads)
        windows[4]
        whole[int(index.places(4)[1])] ^= 1
        path.write_bytes(whole)
        if verify_reads:
            with pytest.raises(ShardError, match="frame 4"):
                windows[4]
        else:
            windows[4]  # the price of hashing once


def test_damaged_folders_are_caught(tmp_path):
    a, b = tmp_path / "a" / "train", tmp_path / "b" / "train"
    index = make_shards(a, seed=1)
    make_shards(b, seed=2)
    shard = a / index.shards[0]
    windows = ShardDataset(a)
    sound = shard.read_bytes()

    with open(shard, "r+b") as file:
        file.truncate(len(sound) // 2)
    with pytest.raises(ShardError, match=f"{shard.name}: .* bytes, but index.npz says"):
        ShardDataset(a)
    with pytest.raises(ShardError, match=r"file ends after 0 bytes in trajectory made-0002"):
        windows[len(windows) - 1]
    shard.unlink()
    with pytest.raises(ShardError, match=f"{shard.name}: shard missing"):
        ShardDataset(a)
    shard.write_bytes(sound)

    good = (a / "index.npz").read_bytes()
    (a / "index.npz").write_bytes((b / "index.npz").read_bytes())
    with pytest.raises(ShardError, match="shard missing"):  # names tell splits apart
        ShardDataset(a)
    for damaged in (good[: len(good) // 2], good[:-40] + bytes(40), b""):
        (a / "index.npz").write_bytes(damaged)
        with pytest.raises(ShardError, match=r"index\.npz: damaged"):
            ShardDataset(a)
    (a / "index.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no index here"):
        open_index(a)
    with pytest.raises(FileNotFoundError, match="lola-ds shard"):
        open_index(tmp_path / "away")


def test_verify_compares_the_tar_with_the_index(tmp_path):
    index = make_shards(tmp_path / "toy" / "train")
    path = index.folder / index.shards[0]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"gamma":1.4', b'"gamma":1.9'))
    problems = verify_split(index.folder).problems
    assert len(problems) == 1
    assert "made-0000.meta.json and the index differ in scalars" in problems[0]
    path.write_bytes(whole.replace(b"made-0001.fields.npy", b"made-0009.fields.npy"))
    problems = verify_split(index.folder).problems
    assert any("not a sound tar" in p or "made-0001.fields.npy missing" in p for p in problems)


def test_ten_thousand_trajectories_open_fast(tmp_path):
    import time
    from dataclasses import replace

    index = make_shards(tmp_path / "toy" / "train")
    n, frames = 10_000, 101
    own = [{"key": f"made-{i:05d}", "trajectory": i, "source": "s.hdf5"} for i in range(n)]
    common = {**index.header["common"], "scalars": {"gamma": 1.4}}
    big = replace(
        index,
        header={**index.header, "common": common, "trajectories": own},
        segments=np.array([[i, 0, frames, 0, 2048 + i] for i in range(n)]),
        checksums=np.random.default_rng(0).integers(0, 2**63, n * frames).astype(np.uint64),
    )
    big.save(index.folder / "index.npz")
    start = time.process_time()
    windows = ShardDataset(index.folder, length=5, stride=4)
    assert time.process_time() - start < 1
    assert len(windows) == n * (frames - 16)
