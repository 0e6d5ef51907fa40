"""Moving averages of the float32 master weights, sharded as ZeRO shards them.

Each rank averages its own partitions: 4 N / world bytes for N parameters and each average, where
the partitions lie. `lola_ds.train.ema_profiles` defines the averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lola_ds import kernels
from lola_ds.train.ema_profiles import Profile
from lola_ds.train.zero.nvme_offload import NvmeStore
from lola_ds.train.zero.partitions import Partition

__all__ = ["Ema"]


class Ema:
    """Moving averages of this rank's partitions.

    Arguments:
        partitions: The partitions, whose current values are the first averages.
        profiles: The profile of each average.
        nvme: The drive to which the partitions are offloaded, if any; averages lie there, too.

    Attributes:
        values: For each profile, a tensor of shape (numel,) for each partition.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        profiles: Sequence[Profile],
        nvme: NvmeStore | None = None,
    ) -> None:
        self.partitions = list(partitions)
        self.profiles = list(profiles)
        self.nvme = nvme
        self._runs, sizes = _merge(self.partitions)
        copy = torch.clone if nvme is None else nvme.keep
        self._averages = [[copy(r.master.float()) for r in self._runs] for _ in self.profiles]
        self.values: list[list[Tensor]] = [
            [value for run, parts in zip(averages, sizes) for value in run.split(parts)]
            for averages in self._averages
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the averages with the weights after optimizer step `step`, counted from 1."""
        decays = [profile.decay(step) for profile in self.profiles]
        if self.nvme is None:
            kernels.ema(self._averages, [run.master for run in self._runs], decays)
            return
        steps = [(run.master, *values) for run, *values in zip(self._runs, *self._averages)]
        for tensors, following in zip(steps, [*steps[1:], ()]):
            self.nvme.fetch(following)
            master, *values = tensors
            kernels.ema([[value] for value in values], [master], decays)
            self.nvme.release(tensors)


def _merge(partitions: Sequence[Partition]) -> tuple[list[Partition], list[list[int]]]:
    """Merges partitions that are adjacent in memory, for fewer calls; returns their sizes, too."""
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
