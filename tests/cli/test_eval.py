"""`lola-ds eval` on tiny converted models: what it writes, what it refuses."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from lola_ds.build import build_model
from lola_ds.cli.common import run_command
from lola_ds.cli.eval import main
from lola_ds.cli.report import main as report
from lola_ds.config import save_config
from lola_ds.data import ShardWriter

ROOT = Path(__file__).resolve().parents[2]
PHYSICS = "euler_multi_quadrants_periodicBC"
FIELDS = ["energy", "density"]


def write_shards(root: Path) -> None:
    """Two trajectories of positive noise, 9 frames of 16 × 16 cells."""
    writer = ShardWriter(root / PHYSICS / "test")
    for i in range(2):
        meta = {
            "dataset": PHYSICS,
            "split": "test",
            "source": "noise.hdf5",
            "trajectory": i,
            "scalars": {"gamma": 1.4},
            "boundary": {"x": [2, 2], "y": [2, 2]},
            "time": {"start": 0.0, "step": 0.015, "size": 9},
            "space": {axis: {"start": 0.0, "step": 1 / 16, "size": 16} for axis in "xy"},
            "fields": [{"name": name, "rank": 0} for name in FIELDS],
        }
        x = np.random.default_rng(i).uniform(0.5, 1.5, (9, 2, 16, 16)).astype(np.float32)
        writer.add(f"noise-{i}", x, meta)
    writer.finish()


def write_model(folder: Path, task: str, **groups: dict) -> None:
    """A converted folder with random weights."""
    config = {
        "task": task,
        "ae_run": None if task == "autoencoder" else str(folder / "autoencoder"),
        "dataset": {
            "name": "euler_periodic",
            "physics": [PHYSICS],
            "dimensions": ["x", "y"],
            "fields": FIELDS,
            "transform": {0: "log1p"},
            "stats": {"mean": [0.7, 1.0], "std": [0.2, 0.3]},
            "scalars": ["gamma"],
            "log_scalars": [],
            "periodic": True,
        },
        "trajectory": {"length": 3, "stride": 2},
        **groups,
    }
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    torch.manual_seed(0)
    save_file(build_model(config).state_dict(), folder / "model.safetensors")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a converted autoencoder, surrogate and diffusion model."""
    root = tmp_path_factory.mktemp("project")
    write_shards(root / "shards")
    ae = {"pix_channels": 2, "lat_channels": 4, "spatial": 2}
    ae |= {"hid_channels": [8, 8], "hid_blocks": [1, 1], "periodic": True}
    vit = {"channels": 4, "spatial": 3, "label_features": 5, "emb_features": 16}
    vit |= {"hid_channels": 16, "hid_blocks": 1, "attention_heads": 2, "periodic": True}
    schedule = {"name": "log_logit", "sigma_min": 1e-3, "sigma_max": 1e3}
    write_model(root / "ae", "autoencoder", ae=ae)
    groups = {
        "surrogate": {"surrogate": vit},
        "diffusion": {"denoiser": {**vit, "schedule": schedule}},
    }
    for task, group in groups.items():
        write_model(root / task, task, **group)
        write_model(root / task / "autoencoder", "autoencoder", ae=ae)
    return root


def words(project: Path, run: str, out: Path, **keys: object) -> list[str]:
    given = {"run": project / run, "data": project / "shards", "out": out, **keys}
    return [f"{key}={value}" for key, value in given.items()]


def test_diffusion(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"members": 2, "steps": 3, "sampling_steps": 2, "trajectories": "1,"}
    main(words(project, "diffusion", tmp_path / "a", **keys))
    output = capsys.readouterr().out
    assert "emulator, ensemble mean" in output
    assert str(tmp_path / "a") in output
    summary = json.loads((tmp_path / "a" / "ab2-members2-steps3" / "summary.json").read_text())
    assert summary["task"] == "diffusion"
    assert summary["settings"]["sampling_steps"] == 2
    assert summary["leads"] == [1, 2, 3]
    assert summary["ensemble"]["relative_spread"][0] > 0
    table = pd.read_csv(tmp_path / "a" / "metrics.csv")
    assert set(table["method"]) == {"truth", "emulator", "ensemble", "persistence", "autoencoder"}
    assert set(table["trajectory"]) == {1}


def test_several_settings_are_one_table(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"members": 2, "steps": 2, "trajectories": "1,", "figures": "false"}
    main(words(project, "diffusion", tmp_path, sampler="ab,ddim", sampling_steps="1,2", **keys))
    names = [f"{sampler}{n}-members2-steps2" for sampler in ("ab", "ddim") for n in (1, 2)]
    assert set(pd.read_csv(tmp_path / "metrics.csv")["setting"]) == set(names)
    printed = capsys.readouterr().out
    for name in names:
        assert f"{name}: VRMSE" in printed
        assert (tmp_path / name / "summary.json").is_file()
    report([str(tmp_path), f"out={tmp_path / 'report.html'}"])
    assert f"{tmp_path.name}, ddim1, mean of 2" in (tmp_path / "report.html").read_text()
    capsys.readouterr()


def test_guided_by_observations_of_the_truth(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guided forecast is another one; its settings are kept and its noise is its own."""
    keys = {"members": 2, "steps": 3, "trajectories": "1,", "figures": "false"}
    guidance = "none,sda:subsample:every=4:std=0.1:units=physical"
    main(words(project, "diffusion", tmp_path, guidance=guidance, sampling_steps=2, **keys))
    plain, guided = "ab2-members2-steps3", "sda_subsample_every4_std0.1_physical"
    summary = json.loads((tmp_path / f"{plain}-{guided}" / "summary.json").read_text())
    described = summary["settings"]["guidance"]
    assert (described["operator"], described["every"], described["std"]) == ("subsample", 4, 0.1)
    assert "guidance" not in json.loads((tmp_path / plain / "summary.json").read_text())["settings"]
    table = pd.read_csv(tmp_path / "metrics.csv")
    rows = table[(table["metric"] == "vrmse") & (table["method"] == "emulator")]
    values = [rows.loc[rows["setting"] == name, "value"] for name in rows["setting"].unique()]
    assert not np.allclose(values[0], values[1], rtol=1e-3)
    capsys.readouterr()


def test_labels_are_weighed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that has learned to do without labels forecasts otherwise when they weigh more."""
    run = tmp_path / "run"
    shutil.copytree(project / "diffusion", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["denoiser"]["label_dropout"] = 0.1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    keys = {"steps": 2, "members": 1, "trajectories": "1,", "figures": "false"}
    out = tmp_path / "out"
    main(words(project, str(run), out, sampling_steps=2, guidance_scale="1,3", **keys))
    table = pd.read_csv(out / "metrics.csv")
    rows = table[(table["metric"] == "vrmse") & (table["method"] == "emulator")]
    plain, heavy = "ab2-members1-steps2", "ab2-members1-steps2-label3.0"
    assert set(rows["setting"]) == {plain, heavy}
    values = [rows.loc[rows["setting"] == name, "value"] for name in (plain, heavy)]
    assert not np.allclose(values[0], values[1], rtol=1e-5)
    settings = json.loads((out / heavy / "summary.json").read_text())["settings"]
    assert settings["guidance_scale"] == 3.0
    capsys.readouterr()


def test_precisions_are_not_mixed(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    keys = {"steps": 2, "members": 2, "sampling_steps": 2, "trajectories": 1, "figures": "false"}
    out = {name: tmp_path / name for name in ("fp32", "bf16")}
    main(words(project, "diffusion", out["fp32"], **keys))
    main(words(project, "diffusion", out["bf16"], precision="bf16", compile="true", **keys))
    plain, short = (pd.read_csv(folder / "metrics.csv")["value"] for folder in out.values())
    assert np.allclose(short, plain, rtol=0.2, atol=0.05)
    assert not np.allclose(short, plain, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="precision"):
        main(words(project, "diffusion", out["fp32"], precision="bf16", **keys))
    capsys.readouterr()


def test_surrogate(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(project, "surrogate", tmp_path, steps=4, trajectories=2))
    assert "emulator / persistence" in capsys.readouterr().out
    summary = json.loads((tmp_path / "steps4" / "summary.json").read_text())
    assert (summary["task"], summary["members"], summary["trajectories"]) == ("surrogate", 1, 2)


def test_autoencoder(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(project, "ae", tmp_path, steps=3))
    assert "Reconstruction of 3 frames of each of 2 trajectories" in capsys.readouterr().out
    assert (tmp_path / "frames3" / "snapshots_density.png").is_file()


@pytest.mark.parametrize(
    ("run", "keys", "message"),
    [
        ("surrogate", {"steps": 5}, "choose steps=4 or less"),
        ("surrogate", {"split": "valid"}, "splits there: test"),
        ("surrogate", {"data": "nowhere"}, "no shards there"),
        ("surrogate", {"trajectories": "some"}, "expected all, a number"),
        ("surrogate", {"trajectories": 3}, "the split holds 2"),
        ("surrogate", {"trajectories": "0,7"}, r"trajectories=\[7\]"),
        ("surrogate", {"overlap": 3}, "overlap=3 must be between 1 and 2"),
        ("surrogate", {"device": "tpu"}, "device=tpu is unknown"),
        ("diffusion", {"sampler": "rk4", "steps": 1}, "sampler='rk4' is unknown"),
        ("ae", {"steps": 10}, "choose steps between 1 and 9"),
        ("missing", {}, "config.yaml is missing"),
        ("surrogate", {"ensemble": 3}, "unknown key 'ensemble'"),
        ("surrogate", {"start": "soon"}, "start=soon: expected an integer"),
        ("surrogate", {"memory": 0}, "memory=0.0 must be positive"),
        ("surrogate", {"memory": 1e-6, "steps": 2}, "give memory="),
        ("surrogate", {"guidance": "sda"}, "guidance is for a diffusion model"),
        ("diffusion", {"guidance": "sda:subsample:each=8"}, "each is unknown for this operator"),
        ("surrogate", {"overlap": "1,"}, "overlap=1,: expected an integer"),
        ("surrogate", {"guidance_scale": 2}, "guidance_scale=2.0 is for a diffusion model"),
        ("diffusion", {"guidance_scale": 0}, "trained with denoiser.label_dropout"),
        ("diffusion", {"guidance_scale": "much"}, "guidance_scale=much: expected a number"),
        ("ae", {"start": "0,2"}, "an autoencoder takes one first frame"),
        ("ae", {"compile": "true"}, "compile=true: an autoencoder alone is evaluated in fp32"),
        (
            "surrogate",
            {"precision": "fp16"},
            "precision=fp16 is unknown; choose fp32, bf16 or auto",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_nothing_written(
    project: Path,
    tmp_path: Path,
    run: str,
    keys: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(main, words(project, run, tmp_path / "out", **keys))
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "out").exists()


def test_help_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "lola-ds eval run=weights/dm" in capsys.readouterr().out


def test_the_example_of_the_documentation_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    example = code[1].replace("weights/dm", "diffusion").replace("SHARDS", "shards")
    monkeypatch.chdir(project)
    exec(compile(example, "evaluation.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_results_keep_their_model_and_are_not_computed_again(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"steps": 2, "figures": "false", "trajectories": 1}
    main(words(project, "surrogate", tmp_path, **keys))
    model = json.loads((tmp_path / "model.json").read_text())
    assert model["parameters"] > 1000
    assert model["config"]["task"] == "surrogate"
    before = (tmp_path / "metrics.parquet").stat()
    main(words(project, "surrogate", tmp_path, **keys))
    assert (tmp_path / "metrics.parquet").stat().st_mtime_ns == before.st_mtime_ns
    assert not list(tmp_path.glob("*.png"))
    with pytest.raises(ValueError, match="task: surrogate there, diffusion here"):
        main(words(project, "diffusion", tmp_path, **keys))
    main(words(project, "surrogate", tmp_path, **{**keys, "start": "0,2"}))
    assert set(pd.read_csv(tmp_path / "metrics.csv")["start"]) == {0, 2}
    capsys.readouterr()
