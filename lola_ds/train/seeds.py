"""Seeds made from integers, and where they go."""

from __future__ import annotations

import hashlib

import torch


def hash_seed(*numbers: int) -> int:
    """A 63-bit seed from integers."""
    data = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the device's own generator; `torch.manual_seed` seeds those of all kinds of devices."""
    generators = torch.cuda.default_generators if device.type == "cuda" else ()
    generator = generators[device.index or 0] if generators else torch.default_generator
    generator.manual_seed(seed)
