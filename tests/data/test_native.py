"""The compiled part against plain Python: bytes, digests, and whatever can go wrong."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from lola_ds.data.format import checksum
from lola_ds.data.native import Outcome, Problem, read_frames, sum_moments

PIECE = 1 << 18  # as in frames.c
SIZES = (1, 16, 17, 128, 129, 240, 241, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 333)


@pytest.fixture
def descriptor(tmp_path):
    """A file of 2 MB of noise, opened."""
    path = tmp_path / "noise"
    path.write_bytes(np.random.default_rng(0).bytes(2_000_000))
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def read(descriptor, size, offsets, rows=None, *, flipped=(), unsure=True):
    """Reads frames, each into the rows of its list; `flipped` have a wrong digest."""
    rows = [[i] for i in range(len(offsets))] if rows is None else rows
    frames = [os.pread(descriptor, size, offset) for offset in offsets]
    digests = np.array([checksum(frame) for frame in frames], np.uint64)
    digests[list(flipped)] ^= np.uint64(1)
    out = np.zeros((1 + max(row for some in rows for row in some), size), np.uint8)
    outcome = read_frames(
        size,
        np.full(len(offsets), descriptor, np.int32),
        np.array(offsets, np.int64),
        digests,
        np.broadcast_to(unsure, len(offsets)).astype(bool),
        np.cumsum([0, *map(len, rows)]),
        np.concatenate(rows),
        out,
    )
    return outcome, out, frames


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_any_size_are_read_hashed_and_copied(descriptor, size):
    offsets, rows = [777, 0, 1_000_001], [[4, 0], [2], [1, 5, 3]]
    outcome, out, frames = read(descriptor, size, offsets, rows)
    assert outcome == Outcome(Problem.NONE, 3, 0, 0)
    for frame, some in zip(frames, rows):
        assert all(out[row].tobytes() == frame for row in some)
    for wrong in range(3):
        outcome, *_ = read(descriptor, size, offsets, rows, flipped=[wrong])
        assert outcome == Outcome(Problem.DIFFERS, wrong, size, 0)
        unsure = np.arange(3) != wrong
        outcome, *_ = read(descriptor, size, offsets, rows, flipped=[wrong], unsure=unsure)
        assert outcome.problem is Problem.NONE


def test_what_cannot_be_read_is_told(descriptor):
    end = 2_000_000
    for size in (1000, PIECE, 2 * PIECE + 5):
        for there in (size - 1, size // 2, 1, 0):
            outcome, *_ = read(descriptor, size, [0, end - there], unsure=False)
            assert outcome == Outcome(Problem.ENDED, 1, there, 0)
    folder = os.open("/", os.O_RDONLY)
    broken = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is mapped at 0: EIO
    closed = os.dup(descriptor)
    os.close(closed)
    for wrong, error in ((closed, errno.EBADF), (folder, errno.EISDIR), (broken, errno.EIO)):
        outcome = read_frames(
            10,
            np.array([descriptor, wrong, closed], np.int32),
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


def test_a_file_that_is_truncated_while_it_is_read(tmp_path):
    """The call ends with what it found, never with the process."""
    path, size, ended = tmp_path / "shrinking", 4_000_000, 0
    tables = (np.arange(8) * size, np.zeros(8, np.uint64), np.zeros(8, bool), np.arange(9))
    out = np.ones((8, size), np.uint8)
    for _ in range(20):
        path.write_bytes(bytes(8 * size))
        with open(path, "r+b") as file:
            shrink = threading.Timer(0.001, file.truncate, [size // 2])
            shrink.start()
            descriptors = np.full(8, file.fileno(), np.int32)
            outcome = read_frames(size, descriptors, *tables, np.arange(8), out)
            shrink.join()
        assert outcome.problem in (Problem.NONE, Problem.ENDED)
        ended += outcome.problem is Problem.ENDED
        if ended:
            break
    assert ended


def test_tables_that_do_not_fit_are_refused(descriptor):
    sound = {
        "size": 10,
        "descriptors": np.full(2, descriptor, np.int32),
        "offsets": np.zeros(2, np.int64),
        "digests": np.zeros(2, np.uint64),
        "unsure": np.zeros(2, bool),
        "bounds": np.array([0, 1, 3]),
        "rows": np.array([0, 2, 1]),
        "out": np.zeros((3, 10), np.uint8),
    }
    assert read_frames(**sound).problem is Problem.NONE
    for name, wrong in (
        ("size", 0),
        ("size", 11),
        ("descriptors", np.zeros(3, np.int32)),
        ("offsets", np.zeros(1, np.int64)),
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
