"""Fine-tuning on real ranks: where weights come from, and halves of autoencoders that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from reading import metrics
from words import overrides

from lola_ds.build import load_model, load_weights_of
from lola_ds.cli.convert import main as convert
from lola_ds.train.checkpoint.export import find_checkpoint, model_weights, select_weights

WORKER = str(Path(__file__).with_name("train_worker.py"))
HALVES = ("encoder", "decoder")
pytestmark = [pytest.mark.ranks, pytest.mark.xdist_group("fork")]


def train(data: Path, world_size: int, *runs: tuple[Path, list[str]]) -> str:
    """Trains autoencoders one after another in one start of the ranks."""
    words = [" ".join(overrides("autoencoder", data, run, *more)) for run, more in runs]
    return run_ranks([WORKER, *" -- ".join(words).split()], world_size)[0]


def frozen(source: Path, folder: Path, stage: int, half: str) -> list[tuple[Path, list[str]]]:
    """A fork that freezes a half, and the same resumed for longer."""
    words = [f"fork.run={source}", f"fork.freeze={half}", f"deepspeed=zero{stage}"]
    run = folder / f"{half}_zero{stage}"
    return [(run, [*words, f"train.epochs={epochs}"]) for epochs in (1, 2)]


def assert_frozen(run: Path, half: str, source: Path) -> None:
    """A half is the source's bit for bit, the other learned; no state is kept for the first."""
    before = load_model(source).state_dict()
    reader = find_checkpoint(run)
    assert len(metrics(run, "train/loss")) == 2
    for which in ("none", "ema"):
        for name, tensor in model_weights(reader, select_weights(reader, which)).items():
            constant = name.startswith(half) or name.endswith("norm.eps")
            assert torch.equal(tensor, before[name]) == constant, (run, name)
    assert not any(name.startswith(f"model.{half}.") for name in reader.shapes)
    assert load_model(run).state_dict().keys() == before.keys()


@pytest.fixture(scope="module")
def forks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run and its forks, of one step an epoch, by two ranks; and what they printed."""
    folder = tmp_path_factory.mktemp("forks")
    source, step = folder / "source", ["train.epoch_size=8", "train.epochs=1"]
    runs = [(source, step)]
    runs += [
        (run, [*step[:1], *more]) for h in HALVES for run, more in frozen(source, folder, 2, h)
    ]
    other = [f"fork.run={source}", "fork.strict=false", "ae.hid_channels=[6,8,8,12]"]
    output = train(shards, 2, *runs, (folder / "other", [*step, *other]))
    return folder, output


@pytest.mark.parametrize("half", HALVES)
def test_a_frozen_half_stays(half: str, forks: tuple[Path, str]) -> None:
    """Through a resumed run, which finds the frozen half in its own checkpoint."""
    folder, _ = forks
    assert_frozen(folder / f"{half}_zero2", half, folder / "source")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_frozen_half_stays_at_every_stage(
    forks: tuple[Path, str], shards: Path, tmp_path: Path
) -> None:
    source, stages = forks[0] / "source", (0, 1, 3)
    runs = [
        one for stage in stages for half in HALVES for one in frozen(source, tmp_path, stage, half)
    ]
    train(shards, 2, *((run, ["train.epoch_size=8", *words]) for run, words in runs))
    for stage in stages:
        for half in HALVES:
            assert_frozen(tmp_path / f"{half}_zero{stage}", half, source)


def test_what_was_loaded_is_on_record(forks: tuple[Path, str]) -> None:
    folder, output = forks
    total = len(load_model(folder / "source").state_dict())
    assert f"{folder / 'source'}: {total} tensors loaded, 0 skipped, 0 left" in output
    report = (folder / "other" / "fork.txt").read_text()
    assert report.splitlines()[0] in output
    assert "loaded  encoder.descent.0.0.weight\n" in report
    assert (
        "skipped encoder.descent.3.0.1.weight: its shape is (8, 32, 3, 3), the model's " in report
    )
    assert "left    encoder.descent.3.0.1.weight\n" in report


def test_weights_are_the_same_from_every_kind_of_folder(
    forks: tuple[Path, str], tmp_path: Path
) -> None:
    source = forks[0] / "source"
    convert([str(source), str(tmp_path / "export")])
    convert(["--to", "lola", str(source), str(tmp_path / "lola")])
    newest = sorted((source / "checkpoints").iterdir())[-1]
    expected = load_model(source).state_dict()
    for folder in (source, newest, tmp_path / "export", tmp_path / "lola"):
        found = load_weights_of(folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), folder
