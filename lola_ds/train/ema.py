"""Moving averages of the float32 master weights, sharded as ZeRO shards them.

    ema_k = d_k ema_{k-1} + (1 - d_k) w_k        after optimizer step k = 1, 2, …

of two kinds, several at once:

- Exponential, d_k = min(decay, (1 + k) / (10 + k)). The ramp [1]_ lets short runs forget their
  initialisation.
- Power law [2]_, d_k = (1 - 1/k)^(gamma + 1): weights are averaged in proportion to the gamma-th
  power of their step, so the average forgets its beginning at every length of training. gamma is
  given by sigma_rel, the width of this profile relative to the length of the training,

      sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)),

  0.05 to 0.15 in practice. From power-law averages that were kept during a training those of any
  other sigma_rel can be made afterwards (`lola_ds.train.checkpoint.posthoc`).

Each rank averages its own partitions: 4 N / world bytes for N parameters and each average, where
the partitions lie.

References:
    .. [1] Tarvainen & Valpola, Mean teachers are better role models, 2017.
    .. [2] Karras et al., Analyzing and improving the training dynamics of diffusion models, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lola_ds import kernels
from lola_ds.train.zero.nvme_offload import Drive
from lola_ds.train.zero.partitions import Partition

POWER_LAW = "power_"
"""How the kinds of power-law averages begin."""


@dataclass(frozen=True)
class Exponential:
    """An exponential average with decay d in [0, 1)."""

    decay_rate: float

    @property
    def kind(self) -> str:
        """What checkpoints call it."""
        return f"ema_{self.decay_rate}"

    def decay(self, step: int) -> float:
        """d_k at optimizer step k, counted from 1."""
        return min(self.decay_rate, (1 + step) / (10 + step))


@dataclass(frozen=True)
class PowerLaw:
    """A power-law average of relative width `sigma_rel`, in (0, WIDEST]; the widest is the mean."""

    WIDEST: ClassVar[float] = 12**-0.5

    sigma_rel: float

    @property
    def kind(self) -> str:
        """What checkpoints call it."""
        return f"{POWER_LAW}{self.sigma_rel}"

    @property
    def gamma(self) -> float:
        """The exponent: the one root gamma >= 0 of the cubic that `sigma_rel` defines."""
        inverse = self.sigma_rel**-2
        return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def decay(self, step: int) -> float:
        """d_k at optimizer step k, counted from 1."""
        return (1 - 1 / step) ** (self.gamma + 1)


Profile = Exponential | PowerLaw


def make_profiles(settings: Mapping[str, Any]) -> list[Profile]:
    """The averages that the group `ema` asks for, the principal one first."""
    decays = settings["decay"] if isinstance(settings["decay"], list) else [settings["decay"]]
    exponential = [Exponential(float(decay)) for decay in decays if decay is not None]
    return exponential + [PowerLaw(float(sigma_rel)) for sigma_rel in settings["power_law"]]


class Ema:
    """The moving averages of `partitions`.

    Arguments:
        partitions: this rank's parts of the parameters; their current values start the averages.
        profiles: one for each average.
        drive: where the partitions lie, if they are offloaded to one; then the averages do, too.

    Attributes:
        values: for each profile a tensor for each partition, of its shape (numel,).
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        profiles: Sequence[Profile],
        drive: Drive | None = None,
    ) -> None:
        self.partitions = list(partitions)
        self.profiles = list(profiles)
        self.drive = drive
        self._runs, sizes = _merge(self.partitions)
        copy = torch.clone if drive is None else drive.keep
        self._averages = [[copy(r.master.float()) for r in self._runs] for _ in self.profiles]
        self.values: list[list[Tensor]] = [
            [value for run, parts in zip(averages, sizes) for value in run.split(parts)]
            for averages in self._averages
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step number `step`, counted from 1."""
        decays = [profile.decay(step) for profile in self.profiles]
        if self.drive is None:
            kernels.ema(self._averages, [run.master for run in self._runs], decays)
            return
        steps = [(run.master, *values) for run, *values in zip(self._runs, *self._averages)]
        for tensors, following in zip(steps, [*steps[1:], ()]):
            self.drive.fetch(following)
            master, *values = tensors
            kernels.ema([[value] for value in values], [master], decays)
            self.drive.release(tensors)


def _merge(partitions: Sequence[Partition]) -> tuple[list[Partition], list[list[int]]]:
    """Fragments that follow each other in memory as one, with their sizes: fewer, larger calls."""
    runs: list[Partition] = []
    sizes: list[list[int]] = []
    for f in partitions:
        if runs and runs[-1].flat is f.flat and runs[-1].offset + runs[-1].numel == f.offset:
            runs[-1] = replace(runs[-1], numel=runs[-1].numel + f.numel)
            sizes[-1].append(f.numel)
        else:
            runs.append(f)
            sizes.append([f.numel])
    return runs, sizes
