"""The hash in C against python-xxhash."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from lola_ds.data.native import XXH3

MAX = 1 << 20
NOISE = np.random.default_rng(0).integers(0, 256, MAX + 64, np.uint8)
POWERS = [n for k in range(11, 21) for n in ((1 << k) - 1, 1 << k, (1 << k) + 1) if n <= MAX]
RANDOM = np.random.default_rng(1).integers(2049, MAX, 50).tolist()


@pytest.mark.parametrize(
    "lengths", [range(2049), POWERS, RANDOM], ids=["0 to 2048", "powers of two", "random"]
)
def test_every_length_has_the_known_digest(lengths):
    for length in lengths:
        data = NOISE[:length]
        assert XXH3(data).intdigest() == xxhash.xxh3_64_intdigest(data), length


@pytest.mark.parametrize("length", [3, 8, 16, 100, 200, 241, 1000, 1025, 4096, 70_001])
def test_every_alignment_has_the_known_digest(length):
    base = -NOISE.ctypes.data % 64
    for start in range(base, base + 64):
        data = NOISE[start % 64 :][:length]
        assert XXH3(data).intdigest() == xxhash.xxh3_64_intdigest(data), start


@pytest.mark.parametrize("longest", [1, 70, 300, 5000])
def test_pieces_have_the_digest_of_the_whole(longest):
    """And each digest on the way leaves the state as it was."""
    rng = np.random.default_rng(longest)
    hasher, start = XXH3(), 0
    for size in rng.integers(0, longest + 1, 2000 if longest < 1000 else 200).tolist():
        hasher.update(NOISE[start : start + size])
        start += size
        assert hasher.hexdigest() == xxhash.xxh3_64_hexdigest(NOISE[:start]), start


def test_any_contiguous_buffer_is_hashed_by_its_bytes():
    array = np.arange(100.0).reshape(4, 25)
    expected = xxhash.xxh3_64_intdigest(array.tobytes())
    assert XXH3(array).intdigest() == XXH3(memoryview(array)).intdigest() == expected
    with pytest.raises((BufferError, ValueError)):
        XXH3(array[:, ::2])
