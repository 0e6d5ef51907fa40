"""Waves that travel: a small split of physical shards, and emulators whose errors are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lola_ds.data import ShardWriter

FIELDS = [{"name": "density", "rank": 0}, {"name": "momentum", "rank": 1}]
SIDE, FRAMES, TRAJECTORIES = 16, 13, 3


def travelling_waves(trajectory: int) -> np.ndarray:
    """(T, C, *S): noise of its own for each field, moved one cell a frame along x."""
    rng = np.random.default_rng(trajectory)
    x = rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)
    return np.stack([np.roll(x, t, axis=1) for t in range(FRAMES)])


def write_split(folder: Path) -> None:
    writer = ShardWriter(folder)
    for i in range(TRAJECTORIES):
        meta = {
            "dataset": folder.parent.name,
            "split": folder.name,
            "source": "waves.hdf5",
            "trajectory": i,
            "scalars": {"gamma": 1.4 + i},
            "boundary": {"x": [2, 2], "y": [2, 2]},
            "time": {"start": 0.0, "step": 0.015, "size": FRAMES},
            "space": {axis: {"start": 0.0, "step": 1 / SIDE, "size": SIDE} for axis in "xy"},
            "fields": FIELDS,
        }
        writer.add(f"waves-{i}", travelling_waves(i), meta)
    writer.finish()


class WaveEmulator:
    """Knows the dynamics (one cell a frame) and adds noise of a chosen size to each member.

    Its "latents" are the physical states.
    """

    length, stride = 4, 2
    device = torch.device("cpu")

    def __init__(self, noise: float = 0.0, generative: bool = True, pixels: bool = False) -> None:
        self.noise, self.generative = noise, generative
        self.codec = WaveCodec(pixels)
        self.generated: list[int] = []  # seed of every forecast made

    def windows(self, steps: int, context: int, overlap: int) -> int:
        return 1 + -(-max(0, steps - (self.length - context)) // (self.length - overlap))

    def generate(
        self, x0: Tensor, label: Tensor, steps: int, members: int, seed: int, **options: object
    ) -> Tensor:
        self.generated.append(seed)
        last = x0[:, -1]
        truth = torch.stack([last.roll(2 * (k + 1), dims=1) for k in range(steps)], dim=1)
        pieces = []
        for m in range(members):
            generator = torch.Generator().manual_seed((seed + m) % 2**62)
            pieces.append(truth + self.noise * torch.randn(truth.shape, generator=generator))
        if "progress" in options:
            for _ in range(self.windows(steps, options["context"], options["overlap"])):
                options["progress"](members)
        return torch.stack(pieces)

    def decode(self, z: Tensor, batch: int, device: torch.device) -> Tensor:
        return z

    def reconstruct(self, x: Tensor, batch: int) -> Tensor:
        return self.codec.reconstruct(x, batch)

    def identity(self) -> dict[str, object]:
        return {"model": f"waves with noise {self.noise}", **self.codec.identity()}


class WaveCodec:
    """An autoencoder that loses a tenth of every field."""

    device = torch.device("cpu")

    def __init__(self, pixels: bool = False) -> None:
        self.autoencoder = None if pixels else torch.nn.Identity()
        self.standardize = type("Statistics", (), {"mean": torch.zeros(3)})()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def reconstruct(self, x: Tensor, batch: int) -> Tensor:
        return 0.9 * x

    def decoding_bytes(self, z: Tensor) -> int:
        return 1

    def identity(self) -> dict[str, object]:
        return {"autoencoder": "a tenth lost"}
