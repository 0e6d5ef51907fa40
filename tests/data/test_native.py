"""The compiled part against plain Python: bytes, digests, and whatever can go wrong."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lola_ds.data.format import checksum
from lola_ds.data.native import (
    Outcome,
    Problem,
    map_file,
    plan_reads,
    read_frames,
    sum_moments,
    unmap_file,
)

PIECE = 1 << 18  # as in frames.c
END = 2_000_000
SIZES = (1, 16, 17, 128, 129, 240, 241, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 333)


@pytest.fixture
def descriptor(tmp_path):
    """A file of 2 MB of noise, opened."""
    path = tmp_path / "noise"
    path.write_bytes(np.random.default_rng(0).bytes(END))
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def read(descriptor, size, offsets, rows=None, *, flipped=(), unverified=True, address=0):
    """Reads frames, each into the rows of its list; `flipped` have a wrong digest.

    They lie in memory if there is an `address` of the file.
    """
    rows = [[i] for i in range(len(offsets))] if rows is None else rows
    frames = [os.pread(descriptor, size, offset) for offset in offsets]
    digests = np.array([checksum(frame) for frame in frames], np.uint64)
    digests[list(flipped)] ^= np.uint64(1)
    out = np.zeros((1 + max(row for some in rows for row in some), size), np.uint8)
    outcome = read_frames(
        size,
        np.array([[descriptor, address, END, 0]]),
        np.zeros(len(offsets), np.int64),
        np.array(offsets, np.int64),
        digests,
        np.broadcast_to(unverified, len(offsets)).astype(bool),
        np.cumsum([0, *map(len, rows)]),
        np.concatenate(rows),
        out,
    )
    return outcome, out, frames


def test_frames_are_found_and_read_once():
    """Against the same in numpy, over random segments, some of one frame."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths = rng.integers(1, 5, rng.integers(1, 8))
        first = np.cumsum(lengths) - lengths
        segments = rng.integers(0, 1000, (len(lengths), 5))
        size, wanted = int(rng.integers(1, 100)), int(rng.integers(1, 30))
        frames, rows = rng.integers(0, lengths.sum(), wanted), rng.permutation(wanted)
        reads = plan_reads(size, frames, rows, first, segments)
        assert reads.frames.tolist() == sorted(set(frames.tolist()))
        assert reads.bounds[0] == 0
        assert reads.bounds[-1] == wanted
        for i, frame in enumerate(reads.frames):
            some = reads.rows[reads.bounds[i] : reads.bounds[i + 1]]
            assert some.tolist() == sorted(rows[frames == frame])
            segment = np.flatnonzero(first <= frame)[-1]
            assert reads.shards[i] == segments[segment, 3]
            assert reads.offsets[i] == segments[segment, 4] + size * (frame - first[segment])


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_frames_of_any_size_are_read_hashed_and_copied(descriptor, size, in_memory):
    address = map_file(descriptor, END) if in_memory else 0
    assert bool(address) == in_memory
    offsets, rows = [777, 0, 1_000_001], [[4, 0], [2], [1, 5, 3]]
    outcome, out, frames = read(descriptor, size, offsets, rows, address=address)
    assert outcome == Outcome(Problem.NONE, 3, 0, 0)
    for frame, some in zip(frames, rows):
        assert all(out[row].tobytes() == frame for row in some)
    for wrong in range(3):
        more = {"flipped": [wrong], "address": address}
        outcome, *_ = read(descriptor, size, offsets, rows, **more)
        assert outcome == Outcome(Problem.DIFFERS, wrong, size, 0)
        outcome, *_ = read(
            descriptor, size, offsets, rows, **more, unverified=np.arange(3) != wrong
        )
        assert outcome.problem is Problem.NONE
    unmap_file(address, END)


def test_what_is_in_memory_comes_from_there(tmp_path):
    """Of two files, one mapped and one opened: what was copied is what was mapped."""
    size = 2 * PIECE + 99
    noise = np.random.default_rng(0).bytes(size)
    (tmp_path / "mapped").write_bytes(noise)
    (tmp_path / "opened").write_bytes(bytes(size))
    with open(tmp_path / "mapped", "rb") as mapped, open(tmp_path / "opened", "rb") as opened:
        address = map_file(mapped.fileno(), size)
        outcome, out, _ = read(opened.fileno(), size, [0], unverified=False, address=address)
        unmap_file(address, size)
    assert outcome.problem is Problem.NONE
    assert out.tobytes() == noise


def test_what_is_gone_from_memory_is_read(descriptor, tmp_path):
    """The mapped file loses its end, which would be the end of the process."""
    size = 2 * PIECE + 99
    with open(tmp_path / "mapped", "w+b") as mapped:
        mapped.write(os.pread(descriptor, size, 0))
        mapped.flush()
        address = map_file(mapped.fileno(), size)
        for left in (PIECE + 3 * mmap.PAGESIZE, PIECE, 0):
            mapped.truncate(left)
            outcome, out, (frame,) = read(descriptor, size, [0], [[1, 0]], address=address)
            assert outcome == Outcome(Problem.NONE, 1, 0, 0)
            assert out[0].tobytes() == out[1].tobytes() == frame
        unmap_file(address, size)


FAULT = """
import faulthandler, mmap, sys, tempfile
import numpy as np
from lola_ds.data.native import read_frames
def read(file):
    one = np.zeros(1, np.int64)
    read_frames(1, np.array([[file.fileno(), 0, 0, 0]]), one, one, one.astype(np.uint64),
                np.zeros(1, bool), np.arange(2), one, np.zeros((1, 1), np.uint8))
with tempfile.TemporaryFile() as file:
    file.write(b"some")
    file.flush()
    whole = mmap.mmap(file.fileno(), 4)
    for word in sys.argv[1:]:
        faulthandler.enable() if word == "enable" else read(file)
    file.truncate(0)
    whole[0]
"""


@pytest.mark.parametrize("words", ["read", "enable read", "read enable", "read enable read"])
def test_faults_of_others_are_theirs(words):
    """They end the process, after what was there to tell of it has told, once."""
    command = [sys.executable, "-c", FAULT, *words.split()]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGBUS
    assert process.stderr.count("Bus error") == ("enable" in words)


def test_what_cannot_be_read_is_told(descriptor):
    address = map_file(descriptor, END)
    for size in (1000, PIECE, 2 * PIECE + 5):
        for there in (size - 1, size // 2, 1, 0):
            for where in (0, address):
                offsets = [0, END - there]
                outcome, *_ = read(descriptor, size, offsets, unverified=False, address=where)
                assert outcome == Outcome(Problem.ENDED, 1, there, 0)
    unmap_file(address, END)
    folder = os.open("/", os.O_RDONLY)
    broken = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is mapped at 0: EIO
    closed = os.dup(descriptor)
    os.close(closed)
    for wrong, error in ((closed, errno.EBADF), (folder, errno.EISDIR), (broken, errno.EIO)):
        outcome = read_frames(
            10,
            np.array([[file, 0, 0, 0] for file in (descriptor, wrong, closed)]),
            np.arange(3),
            np.zeros(3, np.int64),
            np.zeros(3, np.uint64),
            np.zeros(3, bool),
            np.arange(4),
            np.arange(3),
            np.zeros((3, 10), np.uint8),
        )
        assert outcome == Outcome(Problem.FAILED, 1, 0, error)
    os.close(folder)
    os.close(broken)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_is_truncated_while_it_is_read(tmp_path, in_memory):
    """The call ends with what it found, never with the process."""
    path, size, ended = tmp_path / "shrinking", 4_000_000, 0
    tables = (np.zeros(8, np.int64), np.arange(8) * size, np.zeros(8, np.uint64))
    tables += (np.zeros(8, bool), np.arange(9), np.arange(8))
    out = np.ones((8, size), np.uint8)
    for _ in range(20):
        path.write_bytes(bytes(8 * size))
        with open(path, "r+b") as file:
            address = map_file(file.fileno(), 8 * size) if in_memory else 0
            shrink = threading.Timer(0.001, file.truncate, [size // 2])
            shrink.start()
            files = np.array([[file.fileno(), address, 8 * size, 0]])
            outcome = read_frames(size, files, *tables, out)
            shrink.join()
            unmap_file(address, 8 * size)
        assert outcome.problem in (Problem.NONE, Problem.ENDED)
        ended += outcome.problem is Problem.ENDED
        if ended:
            break
    assert ended


def test_tables_that_do_not_fit_are_refused(descriptor):
    sound = {
        "size": 10,
        "files": np.array([[descriptor, 0, 0, 0]]),
        "shards": np.zeros(2, np.int64),
        "offsets": np.zeros(2, np.int64),
        "digests": np.zeros(2, np.uint64),
        "unverified": np.zeros(2, bool),
        "bounds": np.array([0, 1, 3]),
        "rows": np.array([0, 2, 1]),
        "out": np.zeros((3, 10), np.uint8),
    }
    assert read_frames(**sound).problem is Problem.NONE
    for name, wrong in (
        ("size", 0),
        ("size", 11),
        ("files", np.zeros((0, 4), np.int64)),
        ("shards", np.zeros(1, np.int64)),
        ("shards", np.array([0, 1])),
        ("shards", np.array([0, -1])),
        ("offsets", np.zeros(1, np.int64)),
        ("offsets", np.array([0, -1])),
        ("offsets", np.array([0, np.iinfo(np.int64).max - 5])),
        ("digests", np.zeros(1, np.uint64)),
        ("bounds", np.array([0, 1, 4])),
        ("bounds", np.array([0, 0, 3])),
        ("bounds", np.array([1, 2, 3])),
        ("rows", np.array([0, 3, 1])),
        ("rows", np.array([0, -1, 1])),
    ):
        with pytest.raises(ValueError, match="tables do not fit"):
            read_frames(**{**sound, name: wrong})
    with pytest.raises(TypeError):
        read_frames(**{**sound, "out": np.zeros((10, 3), np.uint8).T})
    one, segments = np.zeros(1, np.int64), np.zeros((1, 5), np.int64)
    for wrong in (
        (0, one, one, one, segments),
        (1, one[:0], one[:0], one, segments),
        (1, one, np.zeros(2, np.int64), one, segments),
        (1, one, one, one[:0], segments[:0]),
        (1, one, one, one, segments[:, :4].copy()),
    ):
        with pytest.raises(ValueError, match="tables do not fit"):
            plan_reads(*wrong)
    with pytest.raises(ValueError, match="tables do not fit"):
        sum_moments(np.zeros((2, 3, 4), np.float32), np.zeros(2))


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for size in (1, 15, 16, 17, 1000):
        x = (100 + rng.standard_normal((3, 2, size))).astype(np.float32)
        near = np.array([100.0, 99.0])
        deviation = x - near[:, None]
        expected = [deviation.sum((0, 2)), np.square(deviation).sum((0, 2))]
        first, second, low, high = sum_moments(x, near)
        np.testing.assert_allclose([first, second], expected, rtol=1e-12, atol=1e-10)
        np.testing.assert_array_equal([low, high], [x.min((0, 2)), x.max((0, 2))])


def test_every_source_belongs_to_the_set_up():
    """A change of any of them makes `make setup` compile again."""
    root = Path(__file__).resolve().parents[2]
    rule = next(
        line for line in (root / "Makefile").read_text().splitlines() if line.startswith("$(STAMP)")
    )
    assert "hatch_build.py" in rule
    assert "lola_ds/data/native/*.[ch]" in rule
