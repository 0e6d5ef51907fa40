"""What the loader yields and objectives take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass
class Batch:
    """A (micro-)batch of windows.

    Attributes:
        x: the windows, (B, C, L, *S) float32; physical units, or latents. Batches of a loader over
            shards of float16 or bfloat16 hold those until `to` makes them float32.
        label: the trajectories' labels, (B, D) float32: scalars, then two boundary codes per axis.
        seed: one random seed per sample, (B,) int64: a hash of run seed, epoch and window. Noise,
            times and masks derive from it, so that they do not depend on ranks or micro-batches.
            It stays on the CPU, where it is read: a GPU's would have to be waited for.
        weight: (B,) float32: 0 for padding; the mean over the global batch is 1.
        window: window ids, (B,) int64; -1 for padding.
    """

    x: Tensor
    label: Tensor
    seed: Tensor
    weight: Tensor
    window: Tensor

    def __len__(self) -> int:
        """Number of samples, padding included."""
        return len(self.x)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`, x in float32: half precision travels as it is stored."""
        if self.x.device == torch.device(device) and self.x.dtype == torch.float32:
            return self
        moved = {
            name: value if name == "seed" else value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
        }
        return Batch(**moved | {"x": moved["x"].float()})
