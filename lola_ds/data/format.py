"""The bytes of a shard: tar members, numpy headers, element types, checksums.

A shard is a plain POSIX tar. Each trajectory (or part of one, where it is too long for one member)
holds two members that share a key, as WebDataset expects:

    <key>.fields.npy    (T, C, *S), C-contiguous: frame t is one run of bytes at data + t * frame
    <key>.meta.json     what the numbers are: dataset, split, source, trajectory, frames, scalars,
                        boundary codes, time and space grids, fields, element type

Nothing in a shard depends on when, where or by how many processes it was written: headers carry no
time and no owner, numpy headers are written here (always version 1.0, padded to 64 bytes), JSON is
sorted. Symbols: T frames, C channels, *S spatial axes.

References:
    POSIX.1-2001 pax interchange format; numpy.lib.format; https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lola_ds.data.native import XXH3

__all__ = [
    "FIELDS_SUFFIX",
    "INDEX",
    "META_SUFFIX",
    "SCHEMA",
    "STORED",
    "TAR_END",
    "ShardError",
    "channel_names",
    "checksum",
    "decode_frames",
    "dump_json",
    "encode_frames",
    "npy_header",
    "tar_header",
    "tar_padding",
]

SCHEMA = 1
INDEX = "index.npz"
FIELDS_SUFFIX = ".fields.npy"
META_SUFFIX = ".meta.json"
BLOCK = 512  # tar's unit
TAR_END = bytes(2 * BLOCK)

# Element types as named in configurations, and the numpy type that stores them. bfloat16, which
# numpy lacks, is stored as the upper 16 bits of a float32.
STORED = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


class ShardError(OSError):
    """Bytes that are not what the index says: names the shard and, where known, key and offset."""


def checksum(data: Any) -> int:
    """Returns the XXH3-64 (seed 0) of a contiguous buffer."""
    return XXH3(data).intdigest()


def dump_json(value: Any) -> bytes:
    """JSON in the order of insertion, without optional whitespace, in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def npy_header(shape: Sequence[int], dtype: str) -> bytes:
    """The header of a version 1.0 `.npy` file, padded to a multiple of 64 bytes."""
    sizes = tuple(int(size) for size in shape)
    body = f"{{'descr': '{STORED[dtype].str}', 'fortran_order': False, 'shape': {sizes}, }}"
    size = -(-(10 + len(body) + 1) // 64) * 64
    body = body.ljust(size - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + body.encode("latin1")


def tar_header(name: str, size: int) -> bytes:
    """A member's header block(s): a regular file, mode 644, no owner, no time."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def tar_padding(size: int) -> bytes:
    """The zeros after a member of `size` bytes."""
    return bytes(-size % BLOCK)


def encode_frames(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values -> stored elements (round to nearest, ties to even).

    Raises:
        ValueError: a finite value overflows the type.
    """
    if dtype == "float32":
        return x
    if dtype == "float16":
        with np.errstate(over="ignore"):
            stored = x.astype(STORED[dtype])
    else:
        bits = x.view("<u4")
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        stored = np.where(np.isnan(x), 0x7FC0, rounded).astype(STORED[dtype])
    if np.isinf(decode_frames(stored, dtype)).sum() > np.isinf(x).sum():
        raise ValueError(f"values up to {np.abs(x[np.isfinite(x)]).max():.3g} overflow {dtype}")
    return stored


def decode_frames(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored elements -> float32 values, exactly."""
    if dtype == "bfloat16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype("<f4", copy=False)


def channel_names(fields: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> tuple[str, ...]:
    """Names of the channels of fields, tensors expanded: `momentum` of rank 1 -> `momentum_x`, …

    Arguments:
        fields: `{"name": str, "rank": int}` in channel order.
        axes: names of the spatial axes.
    """
    names = []
    for field in fields:
        suffixes = [""]
        for _ in range(field["rank"]):
            suffixes = [suffix + axis for suffix in suffixes for axis in axes]
        names += [f"{field['name']}_{suffix}" if suffix else field["name"] for suffix in suffixes]
    return tuple(names)
