"""`lola-ds encode`: latent shards of a tiny autoencoder, precisions, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_prep.cli.encode import main
from lola_ds.build import build_model, load_model, make_standardize
from lola_ds.config import load_config, save_config
from lola_ds.data import ShardDataset, ShardWriter

PHYSICS = "euler_multi_quadrants_periodicBC"
FIELDS = ["energy", "density"]
FRAMES = 5


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards`: two splits of two trajectories of noise; `ae`: a converted autoencoder."""
    root = tmp_path_factory.mktemp("project")
    for split in ("train", "test"):
        writer = ShardWriter(root / "shards" / PHYSICS / split)
        for i in range(2):
            meta = {
                "dataset": PHYSICS,
                "split": split,
                "source": "noise.hdf5",
                "trajectory": i,
                "scalars": {"gamma": 1.4},
                "boundary": {"x": [2, 2], "y": [2, 2]},
                "time": {"start": 0.0, "step": 0.015, "size": FRAMES},
                "space": {axis: {"start": 0.0, "step": 1 / 8, "size": 8} for axis in "xy"},
                "fields": [{"name": name, "rank": 0} for name in FIELDS],
            }
            x = np.random.default_rng(i).uniform(0.5, 1.5, (FRAMES, 2, 8, 8))
            writer.add(f"noise-{i}", x.astype(np.float32), meta)
        writer.finish()
    config = {
        "task": "autoencoder",
        "ae_run": None,
        "dataset": {
            "name": "euler_periodic",
            "physics": [PHYSICS],
            "dimensions": ["x", "y"],
            "fields": FIELDS,
            "transform": {},
            "stats": {"mean": [0.7, 1.0], "std": [0.2, 0.3]},
            "scalars": ["gamma"],
            "log_scalars": [],
            "periodic": True,
            "augment": ["random_axis_roll"],
        },
        "ae": {
            "pix_channels": 2,
            "lat_channels": 4,
            "spatial": 2,
            "periodic": True,
            "hid_channels": [8, 8],
            "hid_blocks": [1, 1],
        },
    }
    (root / "ae").mkdir()
    save_config(config, root / "ae" / "config.yaml")
    torch.manual_seed(0)
    save_file(build_model(config).state_dict(), root / "ae" / "model.safetensors")
    return root


def encode(project: Path, out: Path, **keys: object) -> None:
    given = {"run": project / "ae", "data": project / "shards", "out": out, **keys}
    main([f"{key}={value}" for key, value in given.items()])


def latents(out: Path, split: str = "test") -> torch.Tensor:
    windows = ShardDataset(out / PHYSICS / split)
    frames = [windows.read_trajectory(i, slice(None)) for i in range(windows.trajectories)]
    return torch.stack(frames)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("compiled", [False, True])
def test_latents_are_the_autoencoders(project: Path, tmp_path: Path, compiled: bool) -> None:
    """Batches of 3 and 2 frames; the passes after the first are other symmetries."""
    keys = {"batch_size": 3, "repeat": 2, "compile": str(compiled).lower()}
    encode(project, tmp_path, **keys)
    model = load_model(project / "ae")
    standardize = make_standardize(load_config(project / "ae" / "config.yaml")["dataset"])
    fields = ShardDataset(project / "shards" / PHYSICS / "test")
    for i, found in enumerate(latents(tmp_path)):
        x = fields.read_trajectory(i, slice(None)).transpose(0, 1)
        with torch.no_grad():
            expected = model.encode(standardize(x)).transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    train = latents(tmp_path, "train")
    assert len(train) == 4
    torch.testing.assert_close(train[:2], latents(tmp_path), rtol=0, atol=0)
    assert not torch.allclose(train[2:], train[:2], atol=1e-2)


def test_a_split_has_one_precision(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lola_ds")
    encode(project, tmp_path / "fp32", split="test")
    encode(project, tmp_path / "bf16", split="test", precision="bf16")
    plain, short = (latents(tmp_path / name) for name in ("fp32", "bf16"))
    error = (short - plain).norm() / plain.norm()
    assert 1e-5 < error < 2e-2
    encode(project, tmp_path / "fp32", split="test")
    assert "complete already" in caplog.text
    with pytest.raises(FileExistsError, match=r"'precision': 'bf16'.*remove it or choose another"):
        encode(project, tmp_path / "fp32", split="test", precision="bf16")


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"precision": "fp16"}, ValueError, "precision=fp16 is unknown; choose fp32, bf16 or auto"),
        ({"split": "all", "data": "nowhere"}, FileNotFoundError, "lola-ds shard out=nowhere"),
        ({"split": "some"}, ValueError, "split=some is unknown; choose one of all, train"),
        ({"repeat": 0, "split": "train"}, ValueError, "repeat=0 must be at least 1"),
    ],
)
def test_mistakes_write_nothing(
    project: Path, tmp_path: Path, keys: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(project, tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_another_autoencoder_is_refused(project: Path, tmp_path: Path) -> None:
    encode(project, tmp_path / "out", split="test")
    shutil.copytree(project / "ae", tmp_path / "other")
    model = build_model(load_config(tmp_path / "other" / "config.yaml"))
    save_file(model.state_dict(), tmp_path / "other" / "model.safetensors")
    with pytest.raises(FileExistsError, match="remove it or choose another out="):
        encode(project, tmp_path / "out", split="test", run=tmp_path / "other")
