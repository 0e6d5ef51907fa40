"""Evaluates a long rollout within a budget and prints its peak memory in MB.

python memory_worker.py FOLDER FIELDS SIDE STEPS MEMBERS GB latent|pixels
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from helpers import make_shards
from small_emulator import make_emulator

from lola_ds.data import ShardDataset
from lola_ds.evaluate import Forecast, Resources, evaluate


def resident(name: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at most since the mark was reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1e3


def run(
    folder: Path, fields: int, side: int, steps: int, members: int, memory: float, latent: bool
) -> None:
    """One trajectory of `steps` states on `side`² cells, forecast by `members`."""
    shards = folder / f"noise{side}" / "test"
    if not shards.exists():
        x = np.random.default_rng(0).standard_normal((fields, side, side)).astype(np.float32)
        frames = np.broadcast_to(x, (steps + 1, *x.shape))
        make_shards(shards, [frames], ranks=[0] * fields)
    forecast = Forecast(steps=steps, members=members, sampling_steps=1)
    evaluate(
        make_emulator(fields, latent, factor=32 if latent else 16),
        ShardDataset(shards),
        folder / f"results{side}-{latent}",
        forecast,
        resources=Resources(memory=memory),
        draw=False,
        progress=False,
    )


if __name__ == "__main__":
    folder, latent = Path(sys.argv[1]), sys.argv[7] == "latent"
    fields, side, steps, members = map(int, sys.argv[2:6])
    run(folder, fields, 32, 2, 2, 1.0, latent)  # loads what is loaded once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(folder, fields, side, steps, members, float(sys.argv[6]), latent)
    print(f"took {resident('VmHWM') - before:.0f} MB")
