"""See `lola_ds/data/native`."""

from typing import Any

import numpy as np

INTERFACE: int

def arrange(
    size: int,
    frames: np.ndarray,
    rows: np.ndarray,
    first: np.ndarray,
    segments: np.ndarray,
    table: np.ndarray,
    /,
) -> int: ...
def read_frames(
    size: int,
    files: np.ndarray,
    shards: np.ndarray,
    offsets: np.ndarray,
    digests: np.ndarray,
    unverified: np.ndarray,
    bounds: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    /,
) -> tuple[int, int, int, int]: ...
def map_file(descriptor: int, size: int, /) -> int: ...
def unmap_file(address: int, size: int, /) -> None: ...
def release_file(address: int, size: int, /) -> None: ...
def start_hash() -> bytearray: ...
def update_hash(state: bytearray, data: Any, /) -> None: ...
def digest_hash(state: bytearray, /) -> int: ...
def sum_moments(size: int, x: np.ndarray, near: np.ndarray, sums: np.ndarray, /) -> None: ...
