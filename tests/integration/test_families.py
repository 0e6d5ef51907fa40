"""Every step from the equations to the figures, on small flows of the other two families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from ranks import run_ranks
from reading import metrics
from words import NETWORK, TINY

from lola_ds.data import open_index

WORKER = str(Path(__file__).with_name("commands_worker.py"))
PARAMETERS = {  # of the solver, of the autoencoder, of the denoiser
    "rayleigh_benard": (
        "resolution=64 rayleigh=1e5 prandtl=1",
        "ae=dcae_f8c16 ae.hid_channels=[6,8,8,8]",
        "denoiser.patch_size=[1,1,1]",
    ),
    "gravity_cooling": (
        "resolution=16 rho0=0.445 metallicity=0.1",
        "ae=dcae_3d_f8c64_large ae.hid_channels=[4,4,8,8]",
        "denoiser.patch_size=[1,1,1,1]",
    ),
}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("name", PARAMETERS)
def test_from_the_equations_to_the_table(name: str, tmp_path: Path) -> None:
    solver, network, patches = PARAMETERS[name]
    well, shards, latents, out = (tmp_path / part for part in ("well", "shards", "latents", "out"))
    ae, dm, model = (tmp_path / part for part in ("ae", "dm", "model"))
    emulator = " ".join(word for word in NETWORK["diffusion"] if "patch" not in word)
    emulator += f" denoiser.attention_heads=2 {patches}"
    steps = " ".join([*TINY, "train.epochs=1", "train.epoch_size=16", "trajectory.stride=1"])
    network += " ae.hid_blocks=[1,1,1,1] ae.lat_channels=4"
    order = "train.quarantine=true train.shuffle_bytes=1000"
    flow = f"dataset={name}"
    commands = (
        f"synthesize {flow} out={well} trajectories=4 valid=2 test=2 steps=7 {solver}",
        f"shard {flow} source={well} out={shards}",
        f"train task=autoencoder {flow} data={shards} run={ae} {network} {steps} {order}",
        f"encode run={ae} data={shards} out={latents}",
        f"train task=diffusion {flow} data={latents} run={dm} ae_run={ae} {emulator} {steps}",
        f"convert {dm} {model}",
        f"eval run={model} data={shards} out={out} steps=2 members=2 figures=false",
    )
    run_ranks([WORKER, *" -- ".join(commands).split()], 1)

    for run in (ae, dm):
        assert np.isfinite(metrics(run, "train/loss")).all()
    (physics,) = [path.name for path in shards.iterdir()]
    fields, encoded = (open_index(root / physics / "test") for root in (shards, latents))
    assert (len(encoded), encoded.kind) == (len(fields), "latents")
    assert (encoded.shape[0], encoded.axes) == (4, fields.axes)
    table = pandas.read_csv(out / "metrics.csv")
    assert set(fields.fields) <= set(table["field"])
    assert np.isfinite(table.loc[table["metric"] == "vrmse", "value"]).all()
