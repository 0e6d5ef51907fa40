"""Seeds made from integers."""

from __future__ import annotations

import hashlib


def hash_seed(*numbers: int) -> int:
    """A 63-bit seed from integers."""
    data = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
