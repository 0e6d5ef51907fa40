"""The guide to clusters, followed to the letter on a real Slurm of several nodes here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import ROOT
from slurm import Slurm, missing_programs, start_slurm
from words import NETWORK, TINY

from launch import attempt_log
from launch.runs import find_runs, read_run

GUIDE = ROOT / "docs" / "cluster.md"
SIZES = ["compute.gpus=1", "cluster.cpus_per_gpu=1", *TINY, *NETWORK["autoencoder"]] + [
    f"{group}.{word}"
    for group in ("surrogate", "denoiser")
    for word in ("hid_channels=16", "hid_blocks=1", "patch_size=[1,1,1]", "attention_heads=2")
]
EVALUATION = ["pipeline.repeat=2", 'pipeline.evaluate=["members=2","steps=2"]']

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing_programs()), reason=f"no Slurm: {missing_programs()}"),
]


class LoginNode:
    """A clone, a scratch folder, and a shell where `lola-ds` submits small trainings.

    Arguments:
        slurm: the cluster.
        folder: an empty one.
    """

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.clone, self.scratch = folder / "clone", folder / "scratch"
        self.places = {
            "/scratch/me": str(self.scratch),
            "/data/the_well": str(folder / "well"),
            "interface: ib0": "interface: lo",
        }
        for name in ("lola_ds", "launch", "data_prep", "configs", "ds_configs"):
            shutil.copytree(ROOT / name, self.clone / name)
        self._install_command(folder / "bin")

    def _install_command(self, folder: Path) -> None:
        folder.mkdir()
        command = folder / "lola-ds"
        command.write_text(
            "#!/usr/bin/env bash\n"
            'case " $* " in *" run=ae "*) epochs=100 ;; *) epochs=2 ;; esac\n'
            f'[ "$1" = submit ] && set -- "$@" {shlex.join(SIZES)} "train.epochs=$epochs"\n'
            '[[ "$*" == *pipeline=* ]] && set -- "$@" pipeline.tasks=2\n'
            f'[[ "$*" == *pipeline=paper* ]] && set -- "$@" {shlex.join(EVALUATION)}\n'
            f'exec {sys.executable} -m lola_ds.cli.main "$@"\n'
        )
        command.chmod(0o755)
        self.slurm.env["PATH"] = f"{folder}:{self.slurm.env['PATH']}"

    def place(self, text: str) -> str:
        """The guide's text with the folders and the network of this place."""
        for name, here in self.places.items():
            text = text.replace(name, here)
        return text

    def run(self, commands: str) -> str:
        """What the commands say; the first that fails fails the test."""
        modules = "module() { [ $1 = load ]; }; export -f module\n"
        done = subprocess.run(
            ["bash", "-euc", modules + self.place(commands)],
            env=self.slurm.env,
            cwd=self.clone,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def wait(self) -> None:
        """Waits until no job is queued."""
        deadline = time.monotonic() + 900
        while queue := self.slurm.run("squeue", "--noheader").stdout:
            assert time.monotonic() < deadline, queue
            time.sleep(1)


@pytest.fixture
def login(tmp_path: Path) -> Iterator[LoginNode]:
    (tmp_path / "slurm").mkdir()
    with start_slurm(tmp_path / "slurm", nodes=4) as slurm:
        slurm.env |= {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "default"}
        yield LoginNode(slurm, tmp_path)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_guide_to_clusters(login: LoginNode) -> None:
    sizes = "resolution=16 trajectories=16 steps=9"
    login.run(f"lola-ds synthesize dataset=euler_periodic out=/data/the_well {sizes}")
    (mine,) = blocks("yaml")
    path = mine.splitlines()[0].removeprefix("# ")
    (login.clone / path).write_text(login.place(mine))
    runs = login.scratch / "runs"

    data, script, training, watching, again, sweep, pipeline, results, local = blocks("bash")
    login.run(data)
    login.wait()
    assert "#SBATCH --nodes=2" in login.run(script)
    assert not runs.exists()
    login.run(training)
    deadline = time.monotonic() + 600
    while not (runs / "ae" / "metrics.jsonl").is_file():
        assert time.monotonic() < deadline
        time.sleep(1)
    said = login.run(watching)
    assert re.search(r"^ae +running +\d+% of 4000", said, re.MULTILINE), said
    assert "rank_00001.log" in said
    login.run(again)
    login.wait()
    assert "world_size 4" in (runs / "ae" / "environment.txt").read_text()
    begins = [line for line in attempt_log.read(runs / "ae" / "launch") if line["event"] == "begin"]
    assert len(begins) == 2
    assert begins[1]["step"] > 0
    login.run(sweep)
    login.run(pipeline)
    login.wait()
    said = login.run(results)
    assert "complete" in said
    login.run(local)
    states = {folder: read_run(folder, {}).state for folder in find_runs(login.scratch)}
    assert set(states.values()) == {"complete"}, states
    assert len([name for name in states if name.parent.name == "sweep"]) == 4
    assert (login.scratch / "paper" / "report.html").is_file()
    assert "nothing to do" in login.run(pipeline)
