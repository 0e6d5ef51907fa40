"""ZeRO 0 to 3 seen through partitions: losses, weights, averages and checkpoints, on real ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from lola_ds.config import read_deepspeed
from lola_ds.train.checkpoint.export import find_checkpoint, model_weights, select_weights
from lola_ds.train.checkpoint.format import CheckpointError, CheckpointReader, list_checkpoints

WORKER = str(Path(__file__).with_name("stages_worker.py"))
STAGES = ("0", "1", "2", "3", "1_offload", "2_offload", "3_offload", "3_nvme")
TORCH_ADAM = {"zero_force_ds_cpu_optimizer": False}
pytestmark = [pytest.mark.ranks, pytest.mark.xdist_group("stages")]


def start(*jobs: tuple[Path, str], world_size: int) -> list[str]:
    """Trains (folder, `ds_configs/zero*.json`) jobs to step 20, saving at 10 on the way."""
    for folder, _ in jobs:
        folder.mkdir(exist_ok=True)
    words = [f"{folder}:{settings(folder, stage)}:20:10" for folder, stage in jobs]
    return run_ranks([WORKER, *words], world_size)


def settings(folder: Path, stage: str) -> str:
    """The words of a stage; a drive gets two sub-groups, where a large network would have many."""
    if not stage.endswith("nvme"):
        return f"deepspeed=zero{stage}"
    file = folder / "nvme.json"
    given = read_deepspeed("zero3_nvme.json")
    given["zero_optimization"]["sub_group_size"] = 20
    file.write_text(json.dumps(given))
    return f"deepspeed.config={file},deepspeed.nvme_path={folder}"


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())


def final(folder: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(list_checkpoints(folder / "checkpoints")[-1])
    return {
        f"{kind}/{name}": tensor
        for kind in ("weight", "ema_0.9", "exp_avg", "exp_avg_sq")
        for name, tensor in reader.tensors(kind).items()
    }


def assert_same(found: Path, expected: Path) -> None:
    states, references = final(found), final(expected)
    assert states.keys() == references.keys()
    for key, value in references.items():
        torch.testing.assert_close(states[key], value, rtol=1e-5, atol=3e-7)


def rewind(source: Path, target: Path) -> Path:
    """A copy of a run as it was after its first save."""
    shutil.copytree(source, target)
    shutil.rmtree(list_checkpoints(target / "checkpoints")[-1])
    return target


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps of one process at stage 0 (`alone`), and of two ranks at each stage (`two_S`)."""
    folder = tmp_path_factory.mktemp("runs")
    start((folder / "alone", "0"), world_size=1)
    start(*((folder / f"two_{stage}", stage) for stage in STAGES), world_size=2)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one_process(stage: str, runs: Path) -> None:
    assert losses(runs / f"two_{stage}") == pytest.approx(losses(runs / "alone"), rel=1e-5)
    assert_same(runs / f"two_{stage}", runs / "alone")


def test_resumes_at_any_stage_and_world_size(runs: Path, tmp_path: Path) -> None:
    up = [(rewind(runs / "two_3", tmp_path / "3_to_2"), "2_offload")]
    up += [(rewind(runs / "alone", tmp_path / "0_to_3"), "3")]
    up += [(rewind(runs / "two_1", tmp_path / "1_to_drive"), "3_nvme")]
    start(*up, world_size=4)
    down = [(rewind(runs / "two_2", tmp_path / "2_to_0"), "0")]
    down += [(rewind(runs / "two_3_offload", tmp_path / "3_to_1"), "1")]
    down += [(rewind(runs / "two_3_nvme", tmp_path / "drive_to_1"), "1")]
    mine = tmp_path / "mine.json"  # torch's AdamW goes on for DeepSpeed's
    mine.write_text(json.dumps(read_deepspeed("zero2_offload.json") | TORCH_ADAM))
    down += [(rewind(runs / "two_1_offload", tmp_path / "1_to_2"), f"2,deepspeed.config={mine}")]
    start(*down, world_size=1)
    for folder, _ in up + down:
        assert losses(folder) == pytest.approx(losses(runs / "alone")[10:], rel=1e-5)
        assert_same(folder, runs / "alone")


def test_resume_is_bit_exact_at_equal_stage_and_world_size(runs: Path, tmp_path: Path) -> None:
    jobs = [(rewind(runs / f"two_{stage}", tmp_path / f"{stage}"), stage) for stage in STAGES]
    start(*jobs, world_size=2)
    for folder, stage in jobs:
        expected = final(runs / f"two_{stage}")
        for key, value in final(folder).items():
            assert torch.equal(value, expected[key]), (stage, key)


def test_damaged_newest_falls_back_to_the_one_before(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "alone", run)
    path = list_checkpoints(run / "checkpoints")[-1] / "rank_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        find_checkpoint(run)
    (output,) = start((run, "0"), world_size=1)
    assert "is damaged" in output
    assert "falling back to the checkpoint before" in output
    assert_same(run, runs / "alone")


@pytest.mark.parametrize("stage", STAGES)
def test_averages_are_those_of_one_process(stage: int, runs: Path) -> None:
    """And each rank holds its share of each, and no more."""
    run = runs / f"two_{stage}"
    whole = torch.load(run / "whole.pt")
    reader = find_checkpoint(run)
    assert reader.averages == ["ema_0.9", "power_0.1"]
    for kind in reader.averages:
        for name, value in reader.tensors(kind).items():
            torch.testing.assert_close(value, whole[kind][name], rtol=0, atol=1e-7)
    parameters = sum(value.numel() for value in whole["weight"].values())
    assert sum(whole["owned"]) == parameters
    assert max(whole["owned"]) <= parameters / 2 + len(whole["weight"])  # one of padding each


CONVERT = """
import sys
sys.modules["deepspeed"] = None  # importing it fails
from lola_ds.cli.convert import main
for words in sys.argv[1:]:
    main(words.split(":"))
"""


def test_export_is_what_deepspeed_gathers(runs: Path, tmp_path: Path) -> None:
    """Weights and averages of every stage, bit for bit, where there is no DeepSpeed."""
    kinds = {"none": "weight", "0.9": "ema_0.9", "0.1": "power_0.1"}
    jobs = [(stage, which) for stage in STAGES for which in kinds]
    words = [
        f"{runs / f'two_{stage}'}:{tmp_path / f'{stage}_{which}'}:--ema:{which}:--verify"
        for stage, which in jobs
    ]
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 tensors read back, equal bit for bit") == len(jobs)
    for stage, which in jobs:
        found = load_file(tmp_path / f"{stage}_{which}" / "model.safetensors")
        whole = torch.load(runs / f"two_{stage}" / "whole.pt")[kinds[which]]
        assert {f"model.{name}" for name in found} == whole.keys() - {"gain"}
        for name, value in found.items():
            torch.testing.assert_close(value, whole[f"model.{name}"], rtol=0, atol=1e-7)
            assert which != "none" or torch.equal(value, whole[f"model.{name}"])


def test_export_strips_the_objective(runs: Path) -> None:
    reader = find_checkpoint(runs / "two_3")
    weights = model_weights(reader, select_weights(reader, "none"))
    assert set(weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert weights["0.weight"].shape == (13, 5)
    averaged = model_weights(reader)
    assert not torch.equal(weights["0.weight"], averaged["0.weight"])
