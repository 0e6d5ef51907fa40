"""What a new user gets wrong ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from ranks import ROOT, free_port, run_ranks
from words import overrides

from lola_ds.cli.main import COMMANDS

PHYSICS = "euler_multi_quadrants_periodicBC"


def command(*words: object, **env: object) -> subprocess.CompletedProcess[str]:
    """Runs `lola-ds …` in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "lola_ds.cli.main", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"} | {k: str(v) for k, v in env.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Exit 2, one line of error that holds `parts`, no traceback."""
    lines = [line for line in done.stderr.splitlines() if "lola-ds: error" in line]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert str(part) in lines[0]


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Well dataset."""
    out = tmp_path_factory.mktemp("well")
    sizes = "resolution=16 trajectories=4 steps=6 valid=4 test=4".split()
    done = command("synthesize", "dataset=euler_periodic", f"out={out}", *sizes)
    assert done.returncode == 0, done.stderr
    return out


def some_file(well: Path, split: str = "train") -> Path:
    return sorted((well / PHYSICS / "data" / split).glob("*.hdf5"))[0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["deepspeed=zero7"], ["deepspeed/zero7", "zero0 zero1 zero2 zero3"]),
        (["train.epoch=3"], ["train.epoch", "train.epochs"]),
        (["train.epochs=many"], ["train.epochs", "many"]),
        (["train.batch_size=6"], ["train.epoch_size=40", "train.batch_size=6"]),
        (["train.accumulation=3"], ["train.batch_size=8", "train.accumulation=3", "multiple of 3"]),
        (["task=painting"], ["task=painting", "autoencoder, surrogate, diffusion"]),
        (["precision=fp8"], ["precision=fp8", "bf16, fp32"]),
        (["ae_run=somewhere"], ["ae_run=somewhere", "autoencoder"]),
        (["optim.learning_rate=-1"], ["optim.learning_rate=-1", "positive"]),
        (["+ae.colour=red"], ["ae.colour"]),
        (["deepspeed.config=missing.json"], ["missing.json", "zero1.json"]),
        (["dataset=euler_open"], ["openBC/train", "does not exist"]),
        (["data=nowhere"], ["nowhere", "does not exist"]),
        (["dataset.fields=[a,b]"], ["dataset.stats.mean", "5 values for 2"]),
    ],
)
def test_training_is_refused(
    words: list[str], parts: list[str], shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    base = overrides("autoencoder", shards, run)
    refused(command("train", *base, *words), *parts)
    assert not run.exists()


def test_batch_that_does_not_divide_over_ranks(shards: Path, tmp_path: Path) -> None:
    base = overrides("autoencoder", shards, tmp_path / "run")
    env = {"WORLD_SIZE": 3, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    refused(command("train", *base, **env), "train.batch_size=8", "3 ranks", "multiple of 3")
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_architecture(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    base = overrides("autoencoder", shards, run, "train.epochs=1")
    run_ranks(["-m", "lola_ds.cli.train", *base], 1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    refused(
        command("train", *base, "ae.hid_channels=[6,8,8,12]"),
        "another architecture",
        "step_00000005",
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_missing_folder(tmp_path: Path) -> None:
    done = command("shard", "dataset=euler_periodic", "source=nowhere", f"out={tmp_path / 'out'}")
    refused(done, "nowhere")
    assert not (tmp_path / "out").exists()


def test_truncated_file(well: Path, tmp_path: Path) -> None:
    source = tmp_path / "well"
    shutil.copytree(well, source)
    path = some_file(source)
    path.write_bytes(path.read_bytes()[:-2000])
    out = tmp_path / "out"
    done = command("shard", "dataset=euler_periodic", f"source={source}", f"out={out}")
    refused(done, path.name)
    assert not out.exists()


def test_nan_in_a_field(well: Path, tmp_path: Path) -> None:
    source = tmp_path / "well"
    shutil.copytree(well, source)
    path = some_file(source)
    with h5py.File(path, "a") as file:
        file["t0_fields/pressure"][0, 3, 2, 2] = float("nan")  # type: ignore[index]
    out = tmp_path / "out"
    done = command(
        "shard", "dataset=euler_periodic", f"source={source}", f"out={out}", "split=train"
    )
    refused(done, path.name, "trajectory 0", "step 3", "pressure")
    assert not out.exists()


@pytest.mark.parametrize("name", ["encode", "convert", "eval"])
def test_missing_run(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = {
        "encode": ["run=nowhere", "data=nowhere", f"out={out}"],
        "convert": ["nowhere", out],
        "eval": ["run=nowhere", "data=nowhere", f"out={out}"],
    }[name]
    refused(command(name, *words), "nowhere")
    assert not out.exists()


def test_unknown_command_and_flag() -> None:
    refused(command("trian"), "trian", "train")
    refused(command("convert", "--emma", "a", "b"), "--emma")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name: str) -> None:
    done = command(*([name] if name else []), "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout.lower()
    assert f"lola-ds {name}".strip() in done.stdout
