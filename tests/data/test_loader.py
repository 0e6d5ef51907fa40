import gc
import hashlib
import pickle
import threading
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
from helpers import make_shards

from lola_ds.augment import draw_symmetry
from lola_ds.data import ElasticSampler, ShardDataset, ShardError, build_loader, evaluation_batches
from lola_ds.hashing import hash64, sample_seeds

AUGMENT = ("random_axis_flip", "random_axis_permute", "random_axis_roll")


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "toy" / "train", shard_bytes=15_000).folder


def samples(windows, batch, world, steps, *, micro=None, workers=0, augment=AUGMENT, state=None):
    """All samples of `steps` global batches, as {(step, window): bytes}, and the end's states."""
    seen, states = {}, []
    for rank in range(world):
        sampler = ElasticSampler(len(windows), batch, rank, world, seed=3)
        options = {"micro_batch": micro, "workers": workers, "augment": augment}
        with build_loader(windows, sampler, **options) as loader:
            if state:
                loader.load_state_dict(state)
            pieces = batch // world // loader.micro_batch
            for i, part in enumerate(islice(loader, steps * pieces)):
                for x, label, seed, weight, window in zip(*vars(part).values()):
                    value = (x.numpy().tobytes(), label.tolist(), int(seed), float(weight))
                    if window >= 0:
                        assert (i // pieces, int(window)) not in seen
                        seen[i // pieces, int(window)] = value
                    else:
                        assert weight == 0
            states.append(loader.state_dict())
    assert all(other == states[0] for other in states)
    return seen, states[0]


def test_windows(folder):
    windows = ShardDataset(folder, length=3, stride=4)
    whole = [windows.read_trajectory(i) for i in range(3)]
    assert len(windows) == 3 * 4
    for i in range(len(windows)):
        item = windows[i]
        trajectory, start = item["trajectory"], item["start"]
        assert (trajectory, start) == divmod(i, 4)
        assert windows.window(trajectory, start) == i
        assert item["x"].shape == (3, 3, 8, 8)
        assert torch.equal(item["x"], whole[trajectory][:, start : start + 9 : 4])
        gamma = np.float32(1.4 + trajectory / 10)
        assert item["label"].tolist() == [gamma, 2, 2, 2, 2]
    assert windows.fields == ("field0", "field1_x", "field1_y")
    assert windows.spec.ranks == (0, 1)
    assert torch.equal(windows.read_trajectory(1, slice(2, 9, 3)), whole[1][:, 2:9:3])
    with pytest.raises(IndexError):
        windows[12]
    with pytest.raises(ValueError, match="spans 13; lower"):
        ShardDataset(folder, length=4, stride=4)
    assert ShardDataset(folder, max_trajectories=2).trajectories == 2


def test_several_folders(tmp_path, folder):
    other = make_shards(
        tmp_path / "other" / "train", seed=1, meta={"boundary": {"x": [1, 1], "y": [0, 1]}}
    )
    windows = ShardDataset([folder, other.folder], length=2)
    assert windows.trajectories == 6
    assert windows[len(windows) - 1]["label"].tolist()[1:] == [1, 1, 0, 1]
    assert torch.equal(windows[33]["x"], ShardDataset(other.folder, length=2)[0]["x"])
    assert windows.meta(4)["dataset"] == "other"
    small = make_shards(tmp_path / "small" / "train", np.zeros((1, 12, 3, 4, 4)))
    with pytest.raises(ValueError, match="cannot be read together"):
        ShardDataset([folder, small.folder])


def test_datasets_survive_pickling(folder):
    windows = ShardDataset(folder, length=2)
    windows[0]
    assert torch.equal(pickle.loads(pickle.dumps(windows))[5]["x"], windows[5]["x"])


def test_samples_do_not_depend_on_ranks_workers_or_micro_batches(folder):
    windows = ShardDataset(folder, length=3, stride=2)  # 24 windows: 4 batches an epoch
    expected, state = samples(windows, 6, 1, 9)
    assert len(expected) == 9 * 6
    digest = hashlib.sha256(repr(sorted(expected.items())).encode()).hexdigest()
    for world, workers, micro in [(1, 4, 2), (2, 0, 1), (2, 1, 3), (3, 3, None), (6, 2, 1)]:
        found, end = samples(windows, 6, world, 9, workers=workers, micro=micro)
        assert hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest() == digest
        assert end == state


def test_global_order_over_worlds_and_workers(folder):
    """SHA-256 of the order as loaders yield it: equal over the grid, another in the next epoch."""
    windows, batch = ShardDataset(folder, length=2), 48  # 33 windows, so the tail is padded
    digests = [set(), set()]
    for world in (1, 2, 3, 4, 8, 16):
        for workers in (0, 1, 4):
            parts = []
            for rank in range(world):
                sampler = ElasticSampler(len(windows), batch, rank, world, seed=3)
                with build_loader(windows, sampler, workers=workers) as loader:
                    parts.append([b.window for b in islice(loader, 2)])
            for digest, step in zip(digests, zip(*parts)):
                order = torch.stack(step, 1).ravel()
                digest.add(hashlib.sha256(order.numpy().tobytes()).hexdigest())
    assert len(digests[0]) == len(digests[1]) == 1
    assert digests[0] != digests[1]


def test_resuming_at_other_world_sizes_is_exact(folder):
    windows = ShardDataset(folder, length=4)  # 27 windows: 12, 12, 3 padded
    expected, _ = samples(windows, 12, 1, 7)
    state, done = None, 0
    for world, workers, steps in [(4, 1, 1), (2, 0, 2), (3, 3, 1), (1, 2, 3)]:
        found, state = samples(windows, 12, world, steps, workers=workers, state=state)
        assert found == {
            (step - done, window): value
            for (step, window), value in expected.items()
            if done <= step < done + steps
        }
        done += steps
    assert len(str(state)) < 1000


def test_state_counts_complete_steps_only(folder):
    windows = ShardDataset(folder)
    sampler = ElasticSampler(len(windows), 8)
    with build_loader(windows, sampler, micro_batch=2, workers=2) as loader:
        batches = iter(loader)
        states = [next(batches) and loader.state_dict()["consumed"] for _ in range(9)]
        assert states == [0, 0, 0, 8, 8, 8, 8, 16, 16]
        first = next(iter(loader)).window  # starts again at the incomplete step
    assert first.tolist() == sampler.order(0)[16:18].tolist()


def test_weights_average_to_one(folder):
    windows = ShardDataset(folder, length=4)  # 27
    parts = []
    for rank in range(2):
        sampler = ElasticSampler(27, 10, rank, 2)
        with build_loader(windows, sampler, workers=0) as loader:
            parts.append(list(islice(loader, 3)))
    for ranks in zip(*parts):
        weights = torch.cat([part.weight for part in ranks])
        assert weights.mean() == pytest.approx(1)
    assert sorted(ranks[0].weight.tolist()) == [0] + [pytest.approx(10 / 7)] * 4
    padded = ranks[0].window < 0
    assert not ranks[0].x[padded].any()


def test_augmented_samples(folder):
    windows = ShardDataset(folder, length=2)
    sampler = ElasticSampler(len(windows), 8, seed=3)
    with build_loader(windows, sampler, augment=AUGMENT, seed=9) as loader:
        batch = next(iter(loader))
    assert batch.seed.tolist() == sample_seeds(9, 0, batch.window.numpy()).tolist()
    for x, label, seed, _, window in zip(*vars(batch).values()):
        item = windows[int(window)]
        codes, sizes = item["label"][1:].reshape(-1, 2).numpy(), item["x"].shape[2:]
        symmetry = draw_symmetry(AUGMENT, windows.spec, sizes, codes, hash64(int(seed), 1))
        assert np.array_equal(x, symmetry.window(item["x"].numpy(), windows.spec))
        assert np.array_equal(label[1:], symmetry.codes(codes).flatten())


def test_batches_are_safe_to_keep(folder):
    """Memory is used again, but never while something refers to it."""
    windows = ShardDataset(folder, length=2)
    sampler = ElasticSampler(len(windows), 4)
    with build_loader(windows, sampler, workers=2) as loader:
        kept, copies, addresses = [], [], set()
        for i, batch in enumerate(islice(loader, 160)):
            addresses.add(batch.x.data_ptr())
            if i % 3 == 0 and i < 60:
                kept.append(batch.x[1:2].numpy()[0, 0])  # a view of a view
                copies.append(kept[-1].copy())
            del batch
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies))
    assert len(addresses) < 120


def test_errors_in_threads_surface_at_their_batch(folder):
    windows = ShardDataset(folder)
    order = ElasticSampler(len(windows), 4, seed=1).order(0)
    index = windows.indexes[0]
    frame = int(order[9])  # in the third batch
    path = folder / index.shards[index.places(frame)[0]]
    whole = bytearray(path.read_bytes())
    whole[index.places(frame)[1]] ^= 1
    path.write_bytes(whole)
    with build_loader(windows, ElasticSampler(len(windows), 4, seed=1), workers=3) as loader:
        batches = iter(loader)
        assert len(next(batches)) == len(next(batches)) == 4
        with pytest.raises(ShardError, match="checksum mismatch"):
            next(batches)
        assert loader.state_dict()["consumed"] == 8


def test_threads_and_files_end_with_the_loader(folder):
    gc.collect()  # what tests before this one left in cycles
    before = threading.active_count()
    process = psutil.Process()
    files = process.num_fds()
    windows = ShardDataset(folder)
    with build_loader(windows, ElasticSampler(len(windows), 4), workers=3) as loader:
        next(iter(loader))
    assert threading.active_count() == before
    del windows, loader
    gc.collect()
    assert process.num_fds() == files


def test_closing_before_the_iterator_ends_does_not_hang(folder, monkeypatch):
    windows, turns = ShardDataset(folder), threading.Semaphore(1)
    read = windows.read_windows
    monkeypatch.setattr(windows, "read_windows", lambda *args: turns.acquire() and read(*args))
    loader = build_loader(windows, ElasticSampler(len(windows), 2), micro_batch=1, workers=1)
    batches = iter(loader)
    next(batches)  # one job is done, the next one runs, others wait for their turn
    threading.Timer(0.2, turns.release).start()
    loader.close()
    batches.close()  # waits for the job that runs, not for those that never will


def test_open_files_are_bounded(folder, monkeypatch):
    from lola_ds.data import reader

    monkeypatch.setattr(reader, "OPEN_FILES", 1)
    windows = ShardDataset(folder, length=2)
    assert len(windows.indexes[0].shards) > 1
    files = psutil.Process().num_fds()
    for i in range(len(windows)):
        windows[i]
    assert psutil.Process().num_fds() <= files + 1


def test_memory_is_flat(tmp_path):
    data = np.zeros((2, 40, 3, 32, 32), np.float32)
    windows = ShardDataset(make_shards(tmp_path / "a" / "train", data).folder, length=5)
    sampler = ElasticSampler(len(windows), 8)
    process, sizes = psutil.Process(), []
    with build_loader(windows, sampler, augment=AUGMENT, workers=2) as loader:
        for i, _ in enumerate(islice(loader, 600)):
            if i % 100 == 0:
                gc.collect()
                sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[2] < 1_000_000


@pytest.mark.slow
def test_memory_is_flat_over_five_epochs(tmp_path):
    data = np.zeros((10, 216, 3, 16, 16), np.float32)
    windows = ShardDataset(make_shards(tmp_path / "a" / "train", data).folder, 5, 4)
    process, sizes = psutil.Process(), []
    with build_loader(windows, ElasticSampler(len(windows), 4), augment=AUGMENT) as loader:
        sizes.extend(process.memory_info().rss for _ in islice(loader, 5 * 500))
    steps = np.arange(500, len(sizes))
    assert np.polyfit(steps, sizes[500:], 1)[0] * 1000 < 1e6  # bytes per 1,000 batches


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_each_window_once_in_order(folder, workers):
    windows = ShardDataset(folder, length=4)  # 27
    parts = [list(evaluation_batches(windows, 4, rank, 2, workers=workers)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 4
    ids = torch.stack([torch.stack([b.window for b in part]) for part in parts], -1).ravel()
    assert ids[:27].tolist() == list(range(27))
    assert (ids[27:] == -1).all()
    # The mean of weighted means is the mean over windows.
    loss = torch.rand(28)
    means = [(b.weight * loss[b.window]).mean() for part in parts for b in part]
    assert torch.stack(means).mean() == pytest.approx(loss[:27].mean().item())
    again = next(evaluation_batches(windows, 4, 0, 2, workers=workers))
    assert torch.equal(again.seed, parts[0][0].seed)
    assert torch.equal(again.x[1], windows[2]["x"])
    some = list(evaluation_batches(windows, 2, windows=[5, 20, 3]))
    assert [b.window.tolist() for b in some] == [[5, 20], [3, -1]]


def test_latents(tmp_path):
    index = make_shards(
        tmp_path / "latents" / "train", kind="latents", meta={"pass": 2}, dtype="float16"
    )
    windows = ShardDataset(index.folder, length=2)
    assert (windows.kind, windows.spec, windows.meta(0)["pass"]) == ("latents", None, 2)
    sampler = ElasticSampler(len(windows), 2)
    with build_loader(windows, sampler) as loader:
        batch = next(iter(loader))
    assert (batch.x.shape, batch.x.dtype) == ((2, 3, 2, 8, 8), torch.float16)
    moved = batch.to("cpu").x
    assert moved.dtype == torch.float32
    assert torch.equal(moved[0], windows[int(batch.window[0])]["x"])
    with pytest.raises(ValueError, match="latents cannot be augmented"):
        build_loader(windows, sampler, augment=AUGMENT)


def test_mistakes_are_named(folder):
    windows = ShardDataset(folder)
    sampler = ElasticSampler(len(windows), 12, 0, 2)
    with pytest.raises(ValueError, match="micro_batch=4 does not divide the 6 samples"):
        build_loader(windows, sampler, micro_batch=4)
    with pytest.raises(ValueError, match="unknown 'rotate'"):
        build_loader(windows, sampler, augment=["rotate"])
    with pytest.raises(ValueError, match="the dataset has 36"):
        build_loader(windows, ElasticSampler(35, 12))
    with pytest.raises(ValueError, match="workers=-1"):
        build_loader(windows, sampler, workers=-1)


def test_batch_moves():
    from lola_ds.data import Batch

    x = torch.zeros(2, 3, 1, 4, 4)
    batch = Batch(x, torch.zeros(2, 5), torch.zeros(2).long(), torch.ones(2), torch.arange(2))
    moved = batch.to("meta")
    assert moved.x.is_meta
    assert moved.weight.is_meta
    assert not moved.seed.is_meta  # read on the CPU
    assert len(batch) == 2
