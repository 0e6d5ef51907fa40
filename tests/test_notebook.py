"""A model is loaded and emulates where only torch, azula and PyYAML are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lola_ds.build import build_model
from lola_ds.cli.convert import main as convert
from lola_ds.config import save_config
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential
from lola_ds.train.zero.partitions import Partition

NOTEBOOK = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == entry or name.startswith(entry + ".") for entry in FORBIDDEN):
            raise ModuleNotFoundError(f"{name} is needed", name=name)

FORBIDDEN = sys.argv[2:]
sys.meta_path.insert(0, Refuse())

import torch
from lola_ds import load_emulator

emulator = load_emulator(sys.argv[1])
x0 = torch.rand(2, 16, 16) + 0.5
x = emulator.rollout(x0, torch.rand(5), steps=1, members=2, sampling_steps=2)
assert x.shape == (2, 2, 1, 16, 16) and x.isfinite().all()
"""
FORBIDDEN = (
    "deepspeed hydra omegaconf wandb h5py webdataset matplotlib pandas psutil tensorboardX "
    "heavyball safetensors lola_ds.data lola_ds.estimate lola_ds.train.loop lola_ds.train.zero "
    "lola_ds.train.tracking _lola_ds xxhash"
).split()
DATASET = {
    "name": "euler_periodic",
    "physics": ["euler_multi_quadrants_periodicBC"],
    "dimensions": ["x", "y"],
    "fields": ["density", "pressure"],
    "transform": {0: "log1p"},
    "stats": {"mean": [0.7, 1.0], "std": [0.2, 0.3]},
    "scalars": ["gamma"],
    "log_scalars": ["gamma"],
    "periodic": True,
}


def write_run(run: Path, config: dict[str, Any]) -> None:
    """A run folder with one checkpoint."""
    torch.manual_seed(0)
    module = nn.Module()
    module.model = build_model(config)
    partitions = [
        Partition(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in module.named_parameters()
    ]
    store = CheckpointStore(run / "checkpoints", asynchronous=False)
    optimizer = torch.optim.AdamW(module.parameters())
    ema = Ema(partitions, [Exponential(0.9)])
    store.save(1, module, partitions, optimizer, ema, {"step": 1, "updates": 1})
    save_config(config, run / "config.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a diffusion model in the latent space of an autoencoder."""
    root = tmp_path_factory.mktemp("runs")
    common = {"dataset": DATASET, "ae_run": None, "trajectory": {"length": 3, "stride": 1}}
    ae = {"pix_channels": 2, "lat_channels": 4, "spatial": 2, "hid_channels": [8, 8]}
    ae |= {"hid_blocks": [1, 1], "periodic": True}
    write_run(root / "ae", {**common, "task": "autoencoder", "ae": ae})
    vit = {"channels": 4, "spatial": 3, "label_features": 5, "emb_features": 16}
    vit |= {"hid_channels": 16, "hid_blocks": 1, "attention_heads": 2, "periodic": True}
    vit |= {"schedule": {"name": "log_logit", "sigma_min": 1e-3, "sigma_max": 1e3}}
    config = {**common, "task": "diffusion", "ae_run": str(root / "ae"), "denoiser": vit}
    write_run(root / "dm", config)
    return root / "dm"


def load(path: Path, forbidden: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NOTEBOOK, str(path), *forbidden]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_converted_model_needs_torch_and_azula(run: Path, tmp_path: Path) -> None:
    convert([str(run), str(tmp_path / "dm")])
    done = load(tmp_path / "dm", FORBIDDEN)
    assert done.returncode == 0, done.stderr


def test_a_run_needs_the_compiled_checksums_besides(run: Path) -> None:
    done = load(run, [name for name in FORBIDDEN if name not in ("_lola_ds", "lola_ds.data")])
    assert done.returncode == 0, done.stderr
    assert "lola_ds.data is needed" in load(run, ["lola_ds.data"]).stderr
