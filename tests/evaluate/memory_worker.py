"""Evaluates a long rollout within a budget, and prints the memory that it took (MB).

python memory_worker.py FOLDER SIDE STEPS MEMBERS GB latent|pixels
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from helpers import make_shards

from lola_ds.data import ShardDataset
from lola_ds.emulate.emulator import Emulator
from lola_ds.evaluate import Forecast, Resources, evaluate
from lola_ds.fields import Standardize
from lola_ds.models import make_autoencoder, make_denoiser

FIELDS = 5


def make_emulator(latent: bool) -> Emulator:
    """A small denoiser of windows of five states; latents are 16 times smaller than fields."""
    network = {"spatial": 3, "label_features": 5, "emb_features": 16, "hid_channels": 32}
    network |= {"hid_blocks": 1, "attention_heads": 2}
    network |= {"channels": 8 if latent else FIELDS}
    network |= {"patch_size": [1, 1, 1] if latent else [1, 16, 16]}
    denoiser = make_denoiser(**network, schedule={"name": "log_logit"})
    levels = {"hid_channels": [8, 8, 16, 16, 32], "hid_blocks": [1] * 5}
    autoencoder = make_autoencoder(pix_channels=FIELDS, lat_channels=8, spatial=2, **levels)
    standardize = Standardize([0.0] * FIELDS, [1.0] * FIELDS)
    trajectory = {"length": 5, "stride": 1}
    return Emulator(denoiser, autoencoder if latent else None, standardize, trajectory)


def resident(name: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at most since the mark was reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1e3


def run(folder: Path, side: int, steps: int, members: int, memory: float, latent: bool) -> None:
    """One trajectory of `steps` states on `side`² cells, forecast by `members`."""
    shards = folder / f"noise{side}" / "test"
    if not shards.exists():
        x = np.random.default_rng(0).standard_normal((2, FIELDS, side, side)).astype(np.float32)
        frames = np.broadcast_to(x[None, 0], (steps + 1, *x.shape[1:]))
        make_shards(shards, [frames], ranks=[0] * FIELDS)
    forecast = Forecast(steps=steps, members=members, sampling_steps=1)
    torch.manual_seed(0)
    evaluate(
        make_emulator(latent),
        ShardDataset(shards),
        folder / f"results{side}-{latent}",
        forecast,
        resources=Resources(memory=memory),
        draw=False,
        progress=False,
    )


if __name__ == "__main__":
    folder, kind = Path(sys.argv[1]), sys.argv[6] == "latent"
    side, steps, members = map(int, sys.argv[2:5])
    run(folder, 32, 2, 2, 1.0, kind)  # loads what is loaded once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(folder, side, steps, members, float(sys.argv[5]), kind)
    print(f"took {resident('VmHWM') - before:.0f} MB")
