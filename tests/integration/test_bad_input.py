"""What a new user gets wrong ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import pytest
from ranks import ROOT, Ranks, run_ranks
from words import overrides

from lola_ds.cli.main import find_commands

PHYSICS = "euler_multi_quadrants_periodicBC"


SMALL_DISK = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
"""Runs a script that may mount file systems, which nobody else sees and which end with it."""


def command(
    *words: object, limits: Mapping[int, int] | None = None, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs `lola-ds …` in its own process, within limits of its resources or another command."""

    def limit() -> None:
        for kind, most in (limits or {}).items():
            resource.setrlimit(kind, (most, most))

    return subprocess.run(
        [*within, sys.executable, "-m", "lola_ds.cli.main", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        preexec_fn=limit,
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
        (["train.epochs=many"], ["train.epochs", "many"]),
        (["+ae.colour=red"], ["ae.colour"]),
        (["dataset=euler_open"], ["openBC/train", "does not exist"]),
        (["data=nowhere"], ["nowhere", "does not exist"]),
    ],
)
def test_training_is_refused(
    words: list[str], parts: list[str], shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    base = overrides("autoencoder", shards, run)
    refused(command("train", *base, *words), *parts)
    assert not run.exists()


def test_out_of_memory_says_what_saves_some(shards: Path, tmp_path: Path) -> None:
    """A layer of 154 GB, where a process may have 4 GiB; a batch of more."""
    for more, advice in (
        (["ae.hid_channels=[65536,8,8,8]"], "need a smaller network"),
        (
            ["train.batch_size=300000", "train.epoch_size=300000"],
            "need deepspeed=zero0 train.accumulation=",
        ),
    ):
        words = overrides("autoencoder", shards, tmp_path / "run", *more)
        done = command("train", *words, limits={resource.RLIMIT_AS: 4 << 30})
        refused(done, "out of memory", "1 × 4.0 GiB", advice, "lola-ds plan")


def test_full_disk(shards: Path, tmp_path: Path) -> None:
    """No checkpoint fits: nothing is left of it, and the same command works once there is room."""
    run = tmp_path / "run"
    words = overrides("autoencoder", shards, run, "train.epochs=1")
    done = command("train", *words, limits={resource.RLIMIT_FSIZE: 20_000})
    refused(done, "could not be written", f"run={run} is full", "start the same command again")
    assert not list((run / "checkpoints").iterdir())


def test_full_disk_of_its_own(shards: Path, tmp_path: Path) -> None:
    """A file system of 256 KiB, until it is full; what lies there afterwards is listed."""
    run = tmp_path / "run"
    run.mkdir()
    script = f'mount -t tmpfs -o size=256k tmpfs {run} && "$@"; code=$?; find {run}; exit $code'
    if subprocess.run([*SMALL_DISK, f"mount -t tmpfs tmpfs {run}"], check=False).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    words = overrides("autoencoder", shards, run, "train.epochs=1")
    done = command("train", *words, within=[*SMALL_DISK, script, "sh"])
    refused(done, "No space left on device", f"run={run} is full", "start the same command again")
    assert "checkpoints" in done.stdout
    assert "step_" not in done.stdout


def test_lost_rank_is_noticed_at_once(shards: Path, tmp_path: Path) -> None:
    """A rank is killed: the other says so in one line and ends within seconds."""
    words = overrides("autoencoder", shards, tmp_path / "run", "train.epochs=1000")
    with Ranks(["-m", "lola_ds.cli.train", *words], 2) as ranks:
        ranks.wait_until((tmp_path / "run" / "metrics.jsonl").is_file)
        time.sleep(1)
        ranks.signal(1, signal.SIGKILL)
        codes, output = ranks.wait(15), ranks.outputs[0]
    assert codes == [1, -signal.SIGKILL], output
    assert "Traceback" not in output
    assert "lola-ds: error: another rank is gone" in output
    assert "the same command resumes" in output


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


@pytest.mark.parametrize("name", ["", *find_commands()])
def test_help(name: str) -> None:
    done = command(*([name] if name else []), "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout.lower()
    assert f"lola-ds {name}".strip() in done.stdout
