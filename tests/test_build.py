"""What a training takes from its configuration beside the network: data and their order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import make_shards

from lola_ds.build.data import open_split
from lola_ds.build.training import make_loader
from lola_ds.config import compose
from lola_ds.data.shuffle import BlockShuffle, FullShuffle, Mixture
from lola_ds.distributed import Ranks

PHYSICS = ("euler_multi_quadrants_openBC", "euler_multi_quadrants_periodicBC")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training on both Euler datasets, 3 trajectories of 12 frames each."""
    root = tmp_path_factory.mktemp("shards")
    for seed, name in enumerate(PHYSICS):
        make_shards(root / name / "train", seed=seed, shard_bytes=9_000)
    fields = "dataset.fields=[a,b,c] dataset.stats.mean=[0,0,0] dataset.stats.std=[1,1,1]".split()
    sizes = ["train.batch_size=4", "train.epoch_size=4", "valid.samples=4"]
    return ["task=autoencoder", "dataset=euler_all", f"data={root}", "run=none", *fields, *sizes]


def loader_of(words: list[str]):
    config = compose(words)
    windows = open_split(config, "train")
    return windows, make_loader(config, windows, Ranks(0, 0, 1, torch.device("cpu")))


def test_by_default_all_windows_are_shuffled(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(
        "lola_ds.build.data._check_kind", lambda *_: None
    )  # fields have other names
    windows, loader = loader_of(words)
    with loader:
        assert len(windows) == 72
        assert isinstance(loader.sampler._order._order, FullShuffle)


def test_order_share_and_amount_of_data(words: list[str], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lola_ds.build.data._check_kind", lambda *_: None)
    more = ["train.max_trajectories=2", "train.shuffle_bytes=20000", "dataset.weights=[3,1]"]
    windows, loader = loader_of([*words, *more])
    with loader:
        order = loader.sampler._order._order
        assert windows.parts == [24, 24]
        assert isinstance(order, Mixture)
        assert order.weights == [3, 1]
        assert [type(part) for part in order.orders] == [BlockShuffle, BlockShuffle]
        assert [part.budget for part in order.orders] == [20000, 20000]
        assert next(iter(loader)).x.shape == (4, 3, 1, 8, 8)


def test_damaged_windows_stop_a_training_or_are_left_out(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr("lola_ds.build.data._check_kind", lambda *_: None)
    windows, _ = loader_of(words)
    index = windows.indexes[0]
    path = index.folder / index.shards[0]
    whole = bytearray(path.read_bytes())
    whole[int(index.places(5)[1])] ^= 1
    path.write_bytes(whole)
    _, loader = loader_of(words)
    with loader, pytest.raises(OSError, match="checksum mismatch"):
        list(zip(range(18), loader))
    _, loader = loader_of([*words, "train.quarantine=true", "train.verify_reads=true"])
    with loader, pytest.warns(UserWarning, match="window 5 is left out"):
        seen = [batch.window for _, batch in zip(range(18), loader)]
    assert sorted(torch.cat(seen).tolist()) == [-1, *(w for w in range(72) if w != 5)]
    assert loader.state_dict()["quarantine"] == [5]


@pytest.mark.parametrize("key", ["max_trajectories", "shuffle_bytes"])
def test_amounts_must_be_positive(words: list[str], key: str) -> None:
    with pytest.raises(ValueError, match=rf"train.{key}=0 must be at least 1, or null"):
        compose([*words, f"train.{key}=0"])
