"""ZeRO 0 to 3 seen through fragments: losses, weights, averages and checkpoints, on real ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from lola_ds.train.checkpoint import CheckpointError, CheckpointReader, list_checkpoints
from lola_ds.train.export import find_checkpoint, model_weights

WORKER = str(Path(__file__).with_name("stages_worker.py"))
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


def train(folder: Path, stage: int, world: int, steps: int, save_at: int = -1) -> list[float]:
    folder.mkdir(exist_ok=True)
    run_ranks([WORKER, str(folder), str(stage), str(steps), str(save_at)], world)
    return json.loads((folder / "losses.json").read_text())


def final(folder: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(list_checkpoints(folder / "checkpoints")[-1])
    return {
        f"{kind}/{name}": tensor
        for kind in ("weight", "ema", "exp_avg", "exp_avg_sq")
        for name, tensor in reader.tensors(kind)
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7, msg=lambda m: key + m)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """20 steps of one process at stage 0: the reference."""
    folder = tmp_path_factory.mktemp("alone")
    return train(folder, 0, 1, 20, save_at=10), folder


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_equal_one_process(
    stage: int, alone: tuple[list[float], Path], tmp_path: Path
) -> None:
    losses, reference = alone
    found = train(tmp_path / "run", stage, 2, 20)
    assert found == pytest.approx(losses, rel=1e-5)
    assert_same(final(tmp_path / "run"), final(reference))


@pytest.mark.parametrize(
    ("stage", "world", "then", "world_then"),
    [(3, 2, 1, 1), (1, 1, 2, 3), (2, 2, 3, 2), (0, 2, 3, 1)],
)
def test_resumes_at_another_stage_and_world_size(
    stage: int,
    world: int,
    then: int,
    world_then: int,
    alone: tuple[list[float], Path],
    tmp_path: Path,
) -> None:
    losses, reference = alone
    run = tmp_path / "run"
    if world_then == 3:  # 8 samples do not divide over 3 ranks
        world_then = 4
    train(run, stage, world, 10)
    assert train(run, then, world_then, 20) == pytest.approx(losses[10:], rel=1e-5)
    assert_same(final(run), final(reference))


def test_resume_is_bit_exact_at_equal_world_size(
    alone: tuple[list[float], Path], tmp_path: Path
) -> None:
    _, reference = alone
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    train(run, 0, 1, 20)
    expected = final(reference)
    for key, value in final(run).items():
        assert torch.equal(value, expected[key]), key


def test_damaged_checkpoint_is_named_and_refused(
    alone: tuple[list[float], Path], tmp_path: Path
) -> None:
    _, reference = alone
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    path = list_checkpoints(run / "checkpoints")[-1] / "rank_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        find_checkpoint(run)


def test_damaged_newest_falls_back_to_the_one_before(
    alone: tuple[list[float], Path], tmp_path: Path
) -> None:
    losses, reference = alone
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (list_checkpoints(run / "checkpoints")[-1] / "state.json").unlink()
    (output,) = run_ranks([WORKER, str(run), "0", "20"], 1)
    assert "falling back to the checkpoint before" in output
    assert json.loads((run / "losses.json").read_text()) == pytest.approx(losses[10:], rel=1e-6)
    assert_same(final(run), final(reference))


def test_export_strips_the_objective(alone: tuple[list[float], Path]) -> None:
    reader = find_checkpoint(alone[1])
    weights = model_weights(reader, ema=False)
    assert set(weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert weights["0.weight"].shape == (13, 5)
    averaged = model_weights(reader, ema=True)
    assert not torch.equal(weights["0.weight"], averaged["0.weight"])
