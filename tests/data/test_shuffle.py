import numpy as np
import pytest
from helpers import make_shards

from lola_ds.data import ElasticSampler, ShardDataset, build_loader, make_order
from lola_ds.data.shuffle import BlockShuffle, FullShuffle, Mixture, apportion


def block_shuffle(trajectories=200, windows=40, shards=50, budget=10):
    which = np.repeat(np.arange(trajectories), windows)
    places = which * shards // trajectories
    return BlockShuffle(places, which, np.ones(shards), budget, seed=3), places, which


def neighbours(order, which):
    return int((np.diff(which[order]) == 0).sum())


def test_blocks_fit_the_budget_and_are_visited_one_after_the_other():
    order, places, _ = block_shuffle()
    first, second = order(0), order(1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8000))
    assert not np.array_equal(first, second)
    blocks = order.blocks(0)
    assert np.bincount(blocks).max() <= 10
    assert (np.diff(blocks[places[first]]) >= 0).all()
    assert not np.array_equal(blocks, order.blocks(1))
    assert np.array_equal(first, block_shuffle()[0](0))


@pytest.mark.parametrize("budget", [1, 5, 10, 25])
def test_neighbours_of_one_trajectory_at_most_twice_a_full_shuffle(budget):
    order, _, which = block_shuffle(budget=budget)
    full = np.mean([neighbours(FullShuffle(8000, s)(0), which) for s in range(20)])
    assert full == pytest.approx(39, rel=0.2)
    for epoch in range(5):
        assert neighbours(order(epoch), which) <= 2 * full


def test_places_within_blocks_are_uniform():
    """Separating neighbours leaves every window its chance of every place."""
    order, *_ = block_shuffle(trajectories=6, windows=2, shards=1, budget=1)
    counts = np.zeros((12, 12))
    for epoch in range(3000):
        counts[np.arange(12), order(epoch)] += 1
    assert np.abs(counts - 250).max() < 5 * 250**0.5


def test_the_budget_decides(tmp_path):
    index = make_shards(tmp_path / "toy" / "train", shard_bytes=15_000)
    windows = ShardDataset(index.folder, length=3)
    total = int(windows.shard_sizes.sum())
    assert isinstance(make_order(windows, 0, shuffle_bytes=total), FullShuffle)
    order = make_order(windows, 0, shuffle_bytes=total // 2)
    assert isinstance(order, BlockShuffle)
    sampler = ElasticSampler(len(windows), 4, order=order)
    with build_loader(windows, sampler) as loader:
        seen = [i for batch, _ in zip(loader, range(8)) for i in batch.window.tolist()]
    assert sorted(i for i in seen if i >= 0) == list(range(30))
    with pytest.raises(ValueError, match="another order"):
        ElasticSampler(len(windows), 4).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="shuffle_bytes=0"):
        make_order(windows, 0, shuffle_bytes=0)


def test_mixtures_keep_shares_and_visit_all_before_any_twice():
    sizes = (30, 70, 11)
    mixture = Mixture([FullShuffle(n, d) for d, n in enumerate(sizes)], [2, 1, 1], seed=5, draws=80)
    assert mixture.counts == [40, 20, 20]
    bounds = np.cumsum([0, *sizes])
    seen = [np.zeros(n, int) for n in sizes]
    for epoch in range(12):
        draws = mixture(epoch)
        assert len(np.unique(draws)) == 80  # so that seeds of repeated windows differ
        windows = draws % 111
        for d, n in enumerate(sizes):
            mine = windows[(windows >= bounds[d]) & (windows < bounds[d + 1])] - bounds[d]
            assert len(mine) == mixture.counts[d]
            seen[d] += np.bincount(mine, minlength=n)
            assert np.ptp(seen[d]) <= 1 or d == 0 or n < 20
        assert np.array_equal(draws, mixture(epoch))
    assert all(np.ptp(counts) <= 1 for counts in seen)
    with pytest.raises(ValueError, match="give one for each of 3 folders"):
        Mixture(mixture.orders, [1, 2], 0)
    with pytest.raises(ValueError, match="must be positive"):
        Mixture(mixture.orders, [0, 0, 0], 0)


def test_apportion():
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0.2, 0, 0.8]) == [1, 0, 6]


def test_mixed_folders(tmp_path):
    a = make_shards(tmp_path / "a" / "train", seed=1)
    b = make_shards(tmp_path / "b" / "train", seed=2)
    windows = ShardDataset([a.folder, b.folder], length=2, max_trajectories=[1, None])
    assert windows.parts == [11, 33]
    assert ShardDataset([a.folder, b.folder], max_trajectories=2).trajectories == 4
    with pytest.raises(ValueError, match="one for each of 2 folders"):
        ShardDataset([a.folder, b.folder], max_trajectories=[1])
    order = make_order(windows, 0, weights=[3, 1])
    samples = {}
    for world in (1, 2):
        found = []
        for rank in range(world):
            sampler = ElasticSampler(len(windows), 4, rank, world, order=order)
            with build_loader(windows, sampler) as loader:
                for k, batch in zip(range(22), loader):
                    found += [
                        (k, *pair) for pair in zip(batch.window.tolist(), batch.seed.tolist())
                    ]
        samples[world] = sorted(found)
    assert samples[1] == samples[2]
    assert len({seed for *_, seed in samples[1]}) == 88  # repeats are augmented anew
    assert sum(w < 11 for _, w, _ in samples[1]) == 66
