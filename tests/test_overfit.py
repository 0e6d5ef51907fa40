"""One batch is learnt by heart, whatever the objective, the network and the number of axes.

Fields are white noise, so there is nothing to learn but the batch itself; the seeds of its samples,
hence context masks, times and noise, stay the same.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from lola_ds.data import Batch
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate
from lola_ds.objectives import (
    AutoencoderObjective,
    DiffusionObjective,
    Objective,
    SurrogateObjective,
)

NETWORKS: dict[str, dict[str, Any]] = {
    "dcae": {"hid_channels": [16, 32], "hid_blocks": [1, 1], "identity_init": False},
    "unet": {"hid_channels": [16, 32], "hid_blocks": [1, 1]},
    "vit": {"hid_channels": 64, "hid_blocks": 2, "attention_heads": 4},
}

CASES = [
    *itertools.product(["autoencoder"], ["dcae", "vit"], [1, 2, 3]),
    *itertools.product(["surrogate", "diffusion"], ["unet", "vit"], [1, 2, 3]),
]
"""Objective, network and number of axes of space, to which emulators add time."""

FRAMES = 4


def make_objective(task: str, arch: str, axes: int) -> Objective:
    options = {"arch": arch, **NETWORKS[arch]}
    if task == "autoencoder":
        options |= {"pix_channels": 2, "lat_channels": 4, "spatial": axes}
        if arch == "vit":
            options["patch_size"] = 2
        return AutoencoderObjective(make_autoencoder(**options), ["mse"], [1.0])
    options |= {"channels": 2, "label_features": 3, "emb_features": 32, "spatial": axes + 1}
    if arch == "unet":
        options["stride"] = [1] + [2] * axes
    if task == "surrogate":
        return SurrogateObjective(make_surrogate(**options))
    return DiffusionObjective(make_denoiser(**options, schedule={"name": "rectified"}))


@pytest.mark.parametrize(
    ("task", "arch", "axes"),
    [pytest.param(*case, marks=() if case[-1] == 1 else pytest.mark.slow) for case in CASES],
)
def test_overfits_one_batch(task: str, arch: str, axes: int) -> None:
    torch.manual_seed(0)
    objective = make_objective(task, arch, axes)
    grid = {1: [8], 2: [4, 4], 3: [4, 2, 2]}[axes]
    x = torch.randn(2, 2, 1 if task == "autoencoder" else FRAMES, *grid)
    batch = Batch(x, torch.randn(2, 3), torch.arange(2), torch.ones(2), torch.arange(2))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3, betas=(0.9, 0.99))
    losses = []
    for _ in range(1000):
        loss, _ = objective(batch)
        losses.append(loss.item())
        if losses[-1] < 1e-3:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 0.3
    assert losses[-1] < 1e-3
