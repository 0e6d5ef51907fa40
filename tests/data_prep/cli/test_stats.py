"""`lola-ds stats`: the configuration it writes, the table it prints, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from data_prep.cli.stats import main
from data_prep.synthesize.generate import Request, generate
from data_prep.well import WellFile, list_files
from lola_ds.cli.common import run_command
from lola_ds.config import compose_group

PHYSICS = "euler_multi_quadrants_periodicBC"


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    root = tmp_path_factory.mktemp("well")
    request = Request("euler_periodic", {"train": 3}, steps=3, resolution=8)
    generate(request, root, show_progress=False)
    return root


def channels(well) -> np.ndarray:
    """All values of the training split, (C, N) float64."""
    parts = []
    for path in list_files(well, PHYSICS, "train"):
        with WellFile(path) as file:
            for i in range(file.trajectories):
                x = file.read(i, slice(None)).astype(np.float64)
                parts.append(x.swapaxes(0, 1).reshape(5, -1))
    return np.concatenate(parts, axis=1)


def test_writes_the_configuration_with_its_statistics(well, tmp_path, capsys):
    out = tmp_path / "new.yaml"
    main(["dataset=euler_periodic", f"source={well}", f"out={out}", "workers=1"])
    written = yaml.safe_load(out.read_text())
    known = compose_group("dataset", "euler_periodic")
    assert list(written) == list(known)
    assert {**written, "stats": None} == {**known, "stats": None}
    x = channels(well)
    x[:3] = np.log1p(x[:3])
    assert written["stats"]["mean"] == pytest.approx(x.mean(axis=1), rel=1e-4, abs=1e-5)
    assert written["stats"]["std"] == pytest.approx(x.std(axis=1), rel=1e-4)
    table = capsys.readouterr().out
    assert "log1p(energy)" in table
    assert "99.9 %" in table
    assert f"{x[4].max():.4g}" in table
    assert table.splitlines()[2] in out.read_text()


def test_a_folder_gets_a_whole_configuration(well, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([f"dataset={PHYSICS}", f"source={well}", "workers=1", "transform=0:arcsinh"])
    written = yaml.safe_load((tmp_path / f"{PHYSICS}.yaml").read_text())
    known = compose_group("dataset", "euler_periodic")
    differ = {key for key in known if written[key] != known[key]}
    assert differ == {"name", "transform", "stats"}
    assert written["transform"] == {0: "arcsinh"}
    main([f"dataset={PHYSICS}", f"source={well}", "workers=1", "transform=none", "--overwrite"])
    assert yaml.safe_load((tmp_path / f"{PHYSICS}.yaml").read_text())["transform"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=euler_periodic"], "missing source="),
        (["dataset=euler_open", "source=WELL"], "no dataset 'euler_multi_quadrants_openBC'"),
        (
            ["dataset=euler_periodic", "source=WELL", "split=val"],
            "choose one of train",
        ),
        (["dataset=euler_periodic", "source=WELL", "workers=-1"], "must be at least 0"),
        (["dataset=euler_periodic", "source=WELL", "transform=log1p"], "expected channel:name"),
        (["dataset=euler_periodic", "source=WELL", "transform=0:ln"], "one of log"),
        (["dataset=euler_periodic", "source=WELL", "out=none/x.yaml"], "no such folder"),
        (["dataset=euler_periodic", "source=WELL", "out=there.yaml"], "--overwrite"),
    ],
)
def test_mistakes_end_in_one_line(words, message, well, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        run_command(main, [word.replace("WELL", str(well)) for word in words])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine"
