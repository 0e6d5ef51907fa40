"""Checkpoints of one process: asynchronous phases, what is kept, what is damaged, what is odd."""

from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lola_ds.train.checkpoint import rank_files
from lola_ds.train.checkpoint.export import find_checkpoint, model_weights, select_weights
from lola_ds.train.checkpoint.format import CheckpointError, CheckpointReader, list_checkpoints
from lola_ds.train.checkpoint.store import CheckpointStore, SaveState
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential, PowerLaw
from lola_ds.train.zero.partitions import Partition


class Training:
    """A small model whose weights are the number of steps it took."""

    def __init__(self, run: Path, **options) -> None:
        self.module = nn.Module()
        self.module.model = nn.Linear(3, 2)
        self.module.model.gain = nn.Parameter(torch.tensor(1.5))  # without axes
        self.module.model.register_buffer("eps", torch.tensor(1e-5))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.0)
        self.partitions = [
            Partition(name, tuple(p.shape), 0, p.numel(), p, 0)
            for name, p in self.module.named_parameters()
        ]
        self.ema = Ema(self.partitions, [Exponential(0.5), PowerLaw(0.1), PowerLaw(0.2)])
        self.store = CheckpointStore(run / "checkpoints", **options)
        self.run, self.step = run, 0

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            self.store.wait_until_read()
            for parameter in self.module.parameters():
                parameter.grad = torch.zeros_like(parameter)
                parameter.data.fill_(self.step)
            self.optimizer.step()
            self.ema.update(self.step)

    def save(self, **valid: float) -> None:
        state = {"step": self.step, "updates": self.step, "valid": valid}
        self.store.save(self.step, self.module, self.partitions, self.optimizer, self.ema, state)

    def kept(self) -> list[int]:
        return [int(p.name[5:]) for p in list_checkpoints(self.run / "checkpoints")]


def weights(reader: CheckpointReader) -> dict[str, Tensor]:
    return dict(model_weights(reader, select_weights(reader, "none")))


def test_a_save_holds_what_was_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while files are written; the name appears when all of it is there."""
    gate, write = threading.Event(), rank_files.write_tensors

    def write_late(*args):
        assert gate.wait(60)
        return write(*args)

    monkeypatch.setattr(rank_files, "write_tensors", write_late)
    training = Training(tmp_path)
    training.advance(3)
    training.save()
    assert training.store.busy
    training.advance(2)  # the weights move on
    assert training.kept() == []
    gate.set()
    training.store.wait()
    assert not training.store.busy
    assert training.kept() == [3]
    assert (tmp_path / "latest").read_text() == "checkpoints/step_00000003\n"
    saved = weights(find_checkpoint(tmp_path))
    assert all(torch.all(saved[name] == 3) for name in ("weight", "bias", "gain"))
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        "weight": (2, 3),
        "bias": (2,),
        "gain": (),
        "eps": (),
    }
    assert saved["eps"] == torch.tensor(1e-5)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc: threads are not told")
def test_copying_for_a_save_takes_one_thread(tmp_path: Path, request) -> None:
    """A second team of OpenMP threads would make the first one wait idly, from then on."""
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(2)
    weights = torch.ones(1 << 20)
    weights += 1  # the first team
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: None).result()
        before = len(os.listdir("/proc/self/task"))
        contents = {"rank.safetensors": rank_files.Content({"weight": weights}, {})}
        thread.submit(rank_files.HostCopies().begin(tmp_path, contents)).result()
        assert len(os.listdir("/proc/self/task")) == before
        thread.submit(weights.add, 1).result()
        assert len(os.listdir("/proc/self/task")) > before  # as it would show


def test_states_follow_each_other_without_waiting(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.advance()
    training.save()
    states = [training.store.state]
    while training.store.state is not SaveState.IDLE:
        training.store.poll(training.store.busy)
        if training.store.state is not states[-1]:
            states.append(training.store.state)
    assert states == [SaveState.WRITING, SaveState.PUBLISHING, SaveState.IDLE]
    training.store.poll(False)  # nothing is under way
    assert training.store.newest() is not None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = [5.0, 2.0, 3.0, float("nan"), 4.0, None, 1.0]
    training, kept, best = Training(tmp_path, keep=2, best="loss"), [], []
    for loss in losses:
        training.advance()
        training.save(**({} if loss is None else {"loss": loss}))
        training.store.wait()
        kept.append(training.kept())
        best.append((tmp_path / "best").read_text()[-2:-1])
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [6, 7]]
    assert "".join(best) == "1222227"
    assert find_checkpoint(tmp_path / "best").state["step"] == 7
    assert find_checkpoint(tmp_path / "latest").state["step"] == 7


def test_a_damaged_newest_is_passed_over_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path, keep=1)
    for _ in range(2):
        training.advance(10)
        training.save()
    training.store.wait()
    shutil.copytree(tmp_path / "checkpoints/step_00000020", tmp_path / "checkpoints/step_00000030")
    path = tmp_path / "checkpoints/step_00000030/averages_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    reader = training.store.newest()
    assert reader is not None
    assert reader.state["step"] == 20
    assert "averages_00000.safetensors is damaged" in caplog.text
    training.advance(5)
    training.save()
    training.store.wait()
    assert training.kept() == [25]  # not the damaged one, though its name is later


def test_nothing_starts_anew_beside_damaged_checkpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path)
    for _ in range(2):
        training.advance(10)
        training.save()
    training.store.wait()
    for path in (tmp_path / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000010.*no checkpoint before it; bring"):
        training.store.newest()
    assert "falling back" in caplog.text
    assert training.kept() == [10, 20]


def test_averages_outlive_their_checkpoints(tmp_path: Path) -> None:
    """Made into an average of another width, which nobody tracked."""
    training = Training(tmp_path, keep=1, thin=20)
    wanted = Ema(training.partitions, [PowerLaw(0.15)])
    for _ in range(40):
        for _ in range(10):
            training.advance()
            wanted.update(training.step)
        training.save()
    training.store.wait()
    assert training.kept() == [400]
    averages = list_checkpoints(tmp_path / "averages")
    assert [int(path.name[5:]) for path in averages] == list(range(20, 400, 20))
    assert not list(averages[0].glob("rank_*"))
    CheckpointReader(averages[0]).verify()
    reader = find_checkpoint(tmp_path)
    made = select_weights(reader, "0.15")
    assert "made of 40" in made.name
    expected = wanted.values[0][2]
    torch.testing.assert_close(made.tensors["model.gain"].view(1), expected, rtol=2e-3, atol=0)
    assert select_weights(reader, "0.2").name == "average power_0.2"
    assert select_weights(reader, "0.5").name == "average ema_0.5"
    for which, message in {
        "0.7": r"holds the averages ema_0\.5, power_0\.1, power_0\.2; others can only be made",
        "best": "is not ema, none or a number",
    }.items():
        with pytest.raises(ValueError, match=message):
            select_weights(reader, which)


def test_what_kills_left_is_swept(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.advance()
    training.save()
    training.store.wait()
    for name in ("checkpoints/.step_00000002.partial", "averages/.step_00000002.partial"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(tmp_path / "checkpoints/step_00000001", tmp_path / "checkpoints/.step_1.old")
    assert training.store.newest() is not None
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert not list((tmp_path / "averages").iterdir())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_says_so_and_leaves_nothing(asynchronous: bool, tmp_path: Path) -> None:
    training = Training(tmp_path, asynchronous=asynchronous)
    training.advance()
    training.save()
    training.store.wait()
    (tmp_path / "checkpoints/.step_00000002.partial").write_text("a file is in the way")
    training.advance()

    def save() -> None:
        training.save()
        training.store.wait()

    with pytest.raises(OSError, match=r"could not be written \(rank 0: "):
        save()
    assert training.kept() == [1]
    (tmp_path / "checkpoints/.step_00000002.partial").unlink()
    save()
    assert training.kept() == [1, 2]


def test_a_foreign_or_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.advance()
    training.save()
    training.store.wait()
    folder = tmp_path / "checkpoints/step_00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "rank_00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors cannot be read"):
        CheckpointReader(folder)
    del manifest["files"]["rank_00000.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"holds only 0 of 6 values of weight/model\.weight"):
        CheckpointReader(folder).read("weight", "model.weight")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    with pytest.raises(CheckpointError, match="names no moving averages"):
        CheckpointReader(folder)
