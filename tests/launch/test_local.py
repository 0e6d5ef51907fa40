"""Without Slurm: pipelines run here, do nothing twice, and stop where a link fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ranks import ROOT

from launch import attempt_log
from launch.cli import submit
from lola_ds.log import log_to_stderr


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "1")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """Exit status and messages of `lola-ds submit --local`."""
    log_to_stderr()
    with pytest.raises(SystemExit) as exit_info:
        submit.main([*words, "--local"])
    return exit_info.value.code, capsys.readouterr().err


def test_shards_are_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "data_prep"))
    from well_files import write_well

    for i in range(3):
        write_well(tmp_path / "well" / "toy" / "data" / "train" / f"toy_{i}.hdf5", seed=i)
    root = tmp_path / "it's out"
    words = ["pipeline=prepare", "dataset=toy", f"pipeline.source={tmp_path}/well"]
    words += ['pipeline.root="' + str(root) + '"', "pipeline.tasks=2"]
    assert run(capsys, *words) == (0, "")
    assert (root / "shards" / "toy" / "train" / "index.npz").is_file()
    assert run(capsys, *words) == (0, "lola-ds: prepare: done already, nothing to do\n")
    assert "launch.attempt_log" in (root / "stages" / "prepare" / "launch" / "job.sh").read_text()


def test_a_failed_stage_stops_those_that_need_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pipeline=paper", "dataset=euler_open", f"pipeline.source={tmp_path}/nothing"]
    code, said = run(capsys, *words, f"pipeline.root={tmp_path}/out")
    assert code == 2
    first, *others = said.splitlines()
    assert first == "lola-ds: prepare: ended with status 2"
    assert len(others) == 8
    reason = "not started, since a stage that it needs has failed"
    assert all(line.endswith(reason) for line in others)
    (end,) = [
        line
        for line in attempt_log.read(tmp_path / "out" / "stages" / "prepare" / "0" / "launch")
        if line["event"] == "end"
    ]
    assert (end["status"], end["again"]) == (2, False)
    assert not (tmp_path / "out" / "runs").exists()


def test_several_nodes_need_a_slurm(tmp_path: Path) -> None:
    words = ["task=autoencoder", "data=shards", f"run={tmp_path}/run", "compute.nodes=2"]
    with pytest.raises(
        ValueError, match=r"compute.nodes=2: only one node is possible without Slurm"
    ):
        submit.main([*words, "--local"])


def test_no_slurm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    words = ["task=autoencoder", "data=shards", f"run={tmp_path}/run"]
    with pytest.raises(FileNotFoundError, match=r"submit from a login node, or add --local"):
        submit.main(words)
