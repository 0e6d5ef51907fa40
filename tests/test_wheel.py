"""A wheel works away from the checkout, whatever other folders lie in site-packages."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from words import NETWORK, TINY

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command without the checkout on its path; returns its output."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, this one's packages and a decoy `configs`."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    bin_path = folder / "venv" / "bin"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (wheel,) = folder.glob("lola_ds-*.whl")
    run(*pip, "--python", bin_path / "python", "install", "--no-deps", wheel, cwd=folder)
    # A line of a .pth file only extends the path: the editable installation stays out of sight.
    (site / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    decoy = site / "configs"
    decoy.mkdir()
    (decoy / "train.yaml").write_text("decoy: true\n")
    return bin_path


def test_commands_of_a_wheel(environment: Path, tmp_path: Path) -> None:
    lola = environment / "lola-ds"
    where = "import lola_ds, data_prep, launch; print(lola_ds.__file__)"
    assert str(environment.parent) in run(environment / "python", "-c", where, cwd=tmp_path)
    sizes = ["resolution=16", "trajectories=4", "steps=9", "gammas=1.4"]
    run(lola, "synthesize", "dataset=euler_periodic", "out=well", *sizes, cwd=tmp_path)
    run(lola, "shard", "dataset=euler_periodic", "source=well", "out=shards", cwd=tmp_path)
    training = ["task=autoencoder", "data=shards", "run=run", *TINY, *NETWORK["autoencoder"]]
    run(lola, "train", *training, "train.epochs=1", cwd=tmp_path)
    assert (tmp_path / "run" / "latest").is_file()
    script = run(lola, "submit", *training, "--dry-run", cwd=tmp_path)
    assert "srun" in script
