"""See `lola_ds/data/native`."""

from typing_extensions import Buffer

INTERFACE: int

def read_frames(
    size: int,
    descriptors: Buffer,
    offsets: Buffer,
    digests: Buffer,
    unsure: Buffer,
    bounds: Buffer,
    rows: Buffer,
    out: Buffer,
    /,
) -> tuple[int, int, int, int]: ...
def sum_moments(size: int, x: Buffer, near: Buffer, sums: Buffer, /) -> None: ...
