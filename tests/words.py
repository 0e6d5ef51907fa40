"""Hydra overrides that make every network and every run small."""

from __future__ import annotations

from pathlib import Path

TINY = [
    "wandb.mode=disabled",
    "precision=fp32",
    "train.batch_size=8",
    "train.epoch_size=40",
    "train.epochs=4",
    "train.log_every=1",
    "train.workers=1",
    "valid.samples=9",
    "valid.batch_size=4",
    "optim.learning_rate=3e-3",
    "trajectory.length=3",
    "trajectory.stride=2",
]
NETWORK = {
    "autoencoder": [
        "ae.hid_channels=[6,8,8,8]",
        "ae.hid_blocks=[1,1,1,1]",
        "ae.lat_channels=4",
        "ae.dropout=0.1",
    ],
    "surrogate": [
        "surrogate.hid_channels=16",
        "surrogate.hid_blocks=1",
        "surrogate.patch_size=[1,4,4]",
    ],
    "diffusion": [
        "denoiser.hid_channels=16",
        "denoiser.hid_blocks=1",
        "denoiser.patch_size=[1,4,4]",
    ],
}


def overrides(task: str, data: Path, run: Path, *more: str) -> list[str]:
    """The words of a small training in pixel space."""
    heads = [f"{group}.attention_heads=2" for group in ("surrogate", "denoiser")]
    return [f"task={task}", f"data={data}", f"run={run}", *TINY, *NETWORK[task], *heads, *more]
