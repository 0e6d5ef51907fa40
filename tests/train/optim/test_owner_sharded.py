"""Optimizers of whole tensors on real ranks: one result, whatever the number of ranks."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from torch import nn

from lola_ds.config import OPTIMIZERS, compose, compose_group, fill_deepspeed
from lola_ds.train.checkpoint.format import CheckpointError, CheckpointReader, list_checkpoints
from lola_ds.train.checkpoint.tensor_file import TensorFile
from lola_ds.train.checkpoint.training_state import restore_optimizer
from lola_ds.train.optim import make_optimizer
from lola_ds.train.optim.owner_sharded import cost, share

WORKER = str(Path(__file__).parents[1] / "stages_worker.py")
WORDS = {name: f"deepspeed=zero0,optim={name}" for name in OPTIMIZERS if name != "adamw"} | {
    "soap": "deepspeed=zero0,optim=soap,optim.precondition_frequency=8"
}
pytestmark = [pytest.mark.ranks, pytest.mark.xdist_group("whole")]


def start(folder: Path, world_size: int, suffix: str) -> None:
    """Trains `NAME_SUFFIX` of every optimizer to step 20, saving at 10 on the way."""
    jobs = [f"{folder / name}_{suffix}:{words}:20:10" for name, words in WORDS.items()]
    for job in jobs:
        Path(job.partition(":")[0]).mkdir(exist_ok=True)
    run_ranks([WORKER, *jobs], world_size)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME_1`, `NAME_2`, `NAME_3`: trained by as many ranks; `NAME_from_S_to_T`: resumed at 10."""
    folder = tmp_path_factory.mktemp("whole")
    for world_size in (1, 2, 3):
        start(folder, world_size, str(world_size))
    for before, after in ((2, 2), (3, 1)):
        for name in WORDS:
            rewound = folder / f"{name}_from_{before}_to_{after}"
            shutil.copytree(folder / f"{name}_{before}", rewound)
            shutil.rmtree(list_checkpoints(rewound / "checkpoints")[-1])
        start(folder, after, f"from_{before}_to_{after}")
    return folder


def read(run: Path, name: str) -> object:
    return json.loads((run / f"{name}.json").read_text())


def newest(run: Path) -> CheckpointReader:
    return CheckpointReader(list_checkpoints(run / "checkpoints")[-1])


def weights(run: Path) -> dict[str, torch.Tensor]:
    reader = newest(run)
    return {
        f"{kind}/{name}": tensor
        for kind in ("weight", "ema_0.9")
        for name, tensor in reader.tensors(kind).items()
    }


def states(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of optimizer state, by its key in the files."""
    return {
        key: tensor
        for file in rank_files(run)
        for key, tensor in file.tensors().items()
        if key.startswith("state/")
    }


def rank_files(run: Path) -> list[TensorFile]:
    """The weights and optimizer states of each rank."""
    return [TensorFile(path) for path in sorted(newest(run).folder.glob("rank_*.safetensors"))]


@pytest.mark.parametrize("name", WORDS)
class TestRanks:
    @pytest.mark.parametrize("world_size", [2, 3])
    def test_equal_one_process(self, name: str, world_size: int, runs: Path) -> None:
        alone, together = runs / f"{name}_1", runs / f"{name}_{world_size}"
        for values in ("losses", "evaluated"):
            assert read(together, values) == pytest.approx(read(alone, values), rel=1e-5)
        expected = weights(alone)
        for key, value in weights(together).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)

    def test_equal_each_other_bit_for_bit(self, name: str, runs: Path) -> None:
        assert [read(runs / f"{name}_{n}", "apart") for n in (1, 2, 3)] == [None] * 3
        moved = [read(runs / f"{name}_{n}", "moved") for n in (1, 2, 3)]
        assert moved == [None, "model.2.bias", "model.2.bias"]

    def test_learn(self, name: str, runs: Path) -> None:
        losses = read(runs / f"{name}_1", "losses")
        assert isinstance(losses, list)
        assert losses[-1] < 0.7 * losses[0]

    def test_hold_only_what_they_own(self, name: str, runs: Path) -> None:
        reader = newest(runs / f"{name}_3")
        files = rank_files(runs / f"{name}_3")
        held = [{key.split("/")[1] for key in file.specs} - {"shift"} for file in files]
        assert len(held) == 3
        assert all(held)
        assert not any(a & b for a, b in itertools.combinations(held, 2))
        assert set.union(*held) == set(reader.shapes)

    def test_resume_bit_for_bit(self, name: str, runs: Path) -> None:
        whole, resumed = runs / f"{name}_2", runs / f"{name}_from_2_to_2"
        losses = read(whole, "losses")
        assert isinstance(losses, list)
        assert read(resumed, "losses") == losses[10:]
        assert read(resumed, "evaluated") == read(whole, "evaluated")
        for tensors in (weights, states):
            expected, found = tensors(whole), tensors(resumed)
            assert found.keys() == expected.keys()
            for key, value in found.items():
                assert torch.equal(value, expected[key]), key
                assert value.dtype == expected[key].dtype

    def test_resume_with_other_ranks(self, name: str, runs: Path) -> None:
        losses = read(runs / f"{name}_1", "losses")
        assert isinstance(losses, list)
        resumed = runs / f"{name}_from_3_to_1"
        assert read(resumed, "losses") == pytest.approx(losses[10:], rel=1e-5)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_another_optimizer_is_refused(name: str, runs: Path) -> None:
    optimizer = make_optimizer([nn.Parameter(torch.ones(3))], compose_group("optim", name))
    message = f"was written with optim=soap, not {name}; go on with optim=soap"
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer(optimizer, [], newest(runs / "soap_1"), 20)


def test_schedule_free_evaluates_and_saves_the_average(runs: Path) -> None:
    """The weights to evaluate are other ones than those the gradient is taken at."""
    run = runs / "schedule_free_1"
    reader = newest(run)
    x = dict(reader.tensors("weight"))
    z = reader.optimizer_state("gain", torch.device("cpu"))["tensor"]["z"]
    assert not torch.equal(x["gain"], z)
    losses = read(run, "losses")
    assert isinstance(losses, list)
    assert read(run, "evaluated") != losses[-1]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_that_cut_tensors_are_refused(stage: int) -> None:
    words = ["task=autoencoder", "run=r", "data=d", "optim=soap", f"deepspeed=zero{stage}"]
    message = rf"optim=soap steps whole tensors, which ZeRO stage {stage} .* use deepspeed=zero0"
    with pytest.raises(ValueError, match=message):
        fill_deepspeed(compose(words), 1)


@given(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=7),
    st.integers(1, 3),
)
@settings(max_examples=50, deadline=None)
def test_share_is_near_the_best(costs: list[float], world_size: int) -> None:
    def load(owners: tuple[int, ...] | list[int]) -> float:
        return max(sum(c for c, o in zip(costs, owners) if o == r) for r in range(world_size))

    best = min(map(load, itertools.product(range(world_size), repeat=len(costs))))
    owners = share(costs, world_size)
    assert len(owners) == len(costs)
    assert load(owners) <= (4 / 3) * best * (1 + 1e-9)


def test_cost_counts_a_product_along_each_axis() -> None:
    assert cost((4, 6)) == 24 * 11
    assert cost((8, 1, 3, 3)) == 72 * 15
    assert cost(()) == 1
