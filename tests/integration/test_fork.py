"""Fine-tuning on real ranks: where weights come from, and halves of autoencoders that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from reading import metrics
from words import overrides

from lola_ds.build import load_model
from lola_ds.cli.convert import main as convert
from lola_ds.train.export import find_checkpoint, model_weights

WORKER = str(Path(__file__).with_name("train_worker.py"))
pytestmark = [pytest.mark.ranks, pytest.mark.xdist_group("fork")]


def train(data: Path, world_size: int, *runs: tuple[Path, list[str]]) -> str:
    """Trains autoencoders one after another in one start of the ranks."""
    words = [" ".join(overrides("autoencoder", data, run, *more)) for run, more in runs]
    return run_ranks([WORKER, *" -- ".join(words).split()], world_size)[0]


@pytest.fixture(scope="module")
def source(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("source") / "run"
    train(shards, 1, (run, ["train.epochs=1"]))
    return run


@pytest.mark.parametrize(
    "stages", [(2,), pytest.param((0, 1, 3), marks=pytest.mark.slow)], ids=["zero2", "others"]
)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_frozen_half_stays(
    half: str, stages: tuple[int, ...], source: Path, shards: Path, tmp_path: Path
) -> None:
    """Bit for bit, through a resumed run too; the other half learns; no state is kept for it."""
    fork = [f"fork.run={source}", f"fork.freeze={half}"]
    runs = {tmp_path / f"zero{s}": [f"deepspeed=zero{s}", *fork] for s in stages}
    train(shards, 2, *((run, [*more, "train.epochs=1"]) for run, more in runs.items()))
    train(shards, 2, *((run, [*more, "train.epochs=2"]) for run, more in runs.items()))
    before = load_model(source).state_dict()
    for run in runs:
        assert len(metrics(run, "train/loss")) == 10
        reader = find_checkpoint(run)
        for ema in (False, True):
            for name, tensor in model_weights(reader, ema).items():
                frozen = name.startswith(half) or name.endswith("norm.eps")
                assert torch.equal(tensor, before[name]) == frozen, (run, name)
        assert not any(name.startswith(f"model.{half}.") for name in reader.shapes)
        assert load_model(run).state_dict().keys() == before.keys()


def test_weights_come_from_runs_exports_and_runs_of_lola(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    """The same weights from each, so the same first loss; what was loaded is on record."""
    convert([str(source), str(tmp_path / "export")])
    convert(["--to", "lola", str(source), str(tmp_path / "lola")])
    sources = {"run": source, "export": tmp_path / "export", "lola": tmp_path / "lola"}
    short = ["train.epochs=1", "train.epoch_size=8"]
    runs = [(tmp_path / f"from_{n}", [f"fork.run={p}", *short]) for n, p in sources.items()]
    other = [f"fork.run={source}", "fork.strict=false", "ae.hid_channels=[6,8,8,12]", *short]
    output = train(shards, 1, *runs, (tmp_path / "other", other))
    first = {metrics(run, "train/loss")[0] for run, _ in runs}
    assert len(first) == 1
    total = len(load_model(source).state_dict())
    assert f"{source}: {total} tensors loaded, 0 skipped, 0 left" in output

    report = (tmp_path / "other" / "fork.txt").read_text()
    assert "loaded  encoder.descent.0.0.weight\n" in report
    assert (
        "skipped encoder.descent.3.0.1.weight: its shape is (8, 32, 3, 3), the model's " in report
    )
    assert "left    encoder.descent.3.0.1.weight\n" in report
    assert report.splitlines()[0] in output
