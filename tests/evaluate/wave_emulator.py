"""Travelling waves: a small split of shards, and emulators whose errors are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lola_ds.data import ShardWriter
from lola_ds.emulate.options import SamplingOptions

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

    length, stride, compiled = 4, 2, False
    device = torch.device("cpu")

    def __init__(self, noise: float = 0.0, generative: bool = True, pixels: bool = False) -> None:
        self.noise, self.generative = noise, generative
        self.codec = WaveCodec(pixels)
        self.generated: list[int] = []  # seed of every forecast made
        self.together: list[int] = []  # how many were made side by side, each time

    def uncompiled(self) -> AbstractContextManager[None]:
        return nullcontext()

    def windows(self, steps: int, context: int, overlap: int) -> int:
        return 1 + -(-max(0, steps - (self.length - context)) // (self.length - overlap))

    def stream(
        self,
        x0: Tensor,
        label: Tensor,
        options: SamplingOptions,
        observations: None,
        seeds: list[int],
        progress: Callable[[int], object] = lambda count: None,
        batch: int = 16,
    ) -> Iterator[Tensor]:
        """Windows of three new states, one new state less for each known beyond the first."""
        steps, members = options.steps, options.members if self.generative else 1
        self.generated += seeds
        self.together.append(len(seeds))
        truth = torch.stack([x0[:, :, -1].roll(2 * k, dims=2) for k in range(1, steps + 1)], dim=2)
        noise = []
        for m in range(members):
            for seed in seeds:
                generator = torch.Generator().manual_seed((seed + m) % 2**62)
                noise.append(torch.randn(truth.shape[1:], generator=generator))
        forecast = torch.stack(noise).unflatten(0, (members, len(seeds))).transpose(0, 1)
        forecast = truth[:, None] + self.noise * forecast
        done, new = 0, self.length - options.context
        while done < steps:
            progress(members * len(seeds))
            yield forecast[:, :, :, done : done + new]
            done, new = done + new, self.length - options.overlap

    def member_bytes(self, x0: Tensor, label: Tensor, *others: object) -> int:
        return 1

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
