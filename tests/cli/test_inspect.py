"""`lola-ds inspect`: its table and its pictures, in 2-d and 3-d, of fields and latents."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from data_prep.synthesize.generate import Request, generate
from data_prep.well_to_shards import shard_split
from lola_ds.cli.common import run_command
from lola_ds.cli.inspect import main
from lola_ds.data import ShardWriter


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Convection, a 3-d cloud, and latents."""
    root = tmp_path_factory.mktemp("data")
    for dataset, resolution in (("rayleigh_benard", 32), ("gravity_cooling", 8)):
        request = Request(dataset, {"valid": 5}, steps=3, resolution=resolution)
        generate(request, root / "well", show_progress=False)
        gravity = ("y",) if dataset == "rayleigh_benard" else ()
        physics = request.physics
        shard_split(root / "well", root / "shards", physics, "valid", workers=1, gravity=gravity)
    writer = ShardWriter(root / "shards" / "latents" / "valid", kind="latents")
    meta = {
        "scalars": {"gamma": 1.4},
        "boundary": {"x": [2, 2], "y": [0, 1]},
        "fields": [{"name": f"latent {c}", "rank": 0} for c in range(16)],
        "space": {"x": {"start": 0.0, "step": 0.1, "size": 64}, "y": {"values": [0.0, 1.0, 3.0]}},
    }
    z = np.random.default_rng(0).normal(size=(4, 16, 8, 4)).astype(np.float32)
    writer.add("a", z, meta)
    writer.finish()
    return root / "shards"


def rows(text: str) -> dict[str, str]:
    """The lines of a table by their first words."""
    return {line[:13].strip(): line[13:].strip() for line in text.splitlines()}


def test_table_of_convection(shards, capsys):
    main([str(shards / "rayleigh_benard" / "valid")])
    text = capsys.readouterr().out
    table = rows(text)
    assert table["holds"] == "fields in float32, 4 channels"
    assert table["trajectories"] == "5, of 3 frames, 15 in all"
    assert table["grid"].startswith("x 32 × y 8; x 0 to 3.875 by 0.125; y 0.0096")
    assert table["grid"].endswith("uneven")
    assert table["time"] == "0 to 0.5 by 0.25"
    assert table["Rayleigh"] == "100000, 1e+06"
    assert table["Prandtl"] == "0.5, 1"
    assert table["x boundary"] == "periodic"
    assert table["y boundary"] == "wall"
    assert table["gravity"] == "along y"
    assert table["source"].startswith("4 files, rayleigh_benard_Rayleigh_1e5")
    assert "4 kB" in table["size"] or "4.096 kB" in table["size"]
    line = next(line for line in text.splitlines() if line.startswith("buoyancy"))
    assert len(line.split()) == 5


@pytest.mark.parametrize("name", ["rayleigh_benard", "turbulence_gravity_cooling", "latents"])
def test_pictures(shards, name, tmp_path, capsys):
    out = tmp_path / "picture.png"
    main([str(shards / name / "valid"), f"out={out}", "times=3"])
    assert f"wrote {out}" in capsys.readouterr().out
    picture = matplotlib.image.imread(out)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.1


def test_fields_and_trajectory_can_be_chosen(shards, tmp_path):
    pictures = []
    for word in ("trajectory=0", "trajectory=4"):
        out = tmp_path / f"{word}.png"
        main([str(shards / "rayleigh_benard" / "valid"), word, "fields=velocity_y", f"out={out}"])
        pictures.append(matplotlib.image.imread(out))
    assert pictures[0].shape[0] < pictures[0].shape[1]
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 folders given"),
        (["SPLIT", "SPLIT"], "2 folders given"),
        (["nowhere"], "no such folder"),
        (["SPLIT", "trajectory=5"], "has the trajectories 0 to 4"),
        (["SPLIT", "times=0"], "must be at least 1"),
        (["SPLIT", "out=a.png", "fields=heat"], "not among buoyancy"),
        (["SPLIT", "out=a.jpg"], "ends in .png"),
        (["SPLIT", "out=none/a.png"], "no such folder"),
    ],
)
def test_mistakes_end_in_one_line(words, message, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    split = str(shards / "rayleigh_benard" / "valid")
    with pytest.raises(SystemExit) as exit_:
        run_command(main, [word.replace("SPLIT", split) for word in words])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]
