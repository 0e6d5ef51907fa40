import subprocess

import numpy as np
import pytest
import webdataset
from helpers import make_meta, make_shards

from lola_ds.cli.common import run_command
from lola_ds.cli.verify import main as verify
from lola_ds.data import ShardDataset, ShardError, repair_index, stream_windows, verify_split
from lola_ds.data.format import decode_frames, encode_frames


def lose_index(index):
    path = index.folder / "index.npz"
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("shard_bytes", [9_000, 15_000, 10**9])  # 9,000 cuts trajectories
def test_a_lost_index_comes_back_byte_for_byte(tmp_path, shard_bytes):
    index = make_shards(
        tmp_path / "toy" / "train", shard_bytes=shard_bytes, transform={0: "arcsinh"}
    )
    data = lose_index(index)
    repair_index(index.folder)
    assert (index.folder / "index.npz").read_bytes() == data
    with pytest.raises(FileExistsError, match="remove it first"):
        repair_index(index.folder)


def test_half_precision_and_nan(tmp_path):
    data = np.random.default_rng(0).standard_normal((2, 5, 3, 8, 8))
    data[1, 3, 0, 2, 2] = np.nan
    with pytest.warns(UserWarning, match="step 3"):
        index = make_shards(
            tmp_path / "a" / "train", data, dtype="bfloat16", allow_nonfinite=True, kind="latents"
        )
    lose_index(index)
    again = repair_index(index.folder)
    assert again.header["nonfinite"] == index.header["nonfinite"] == [[1, 3, "field0"]]
    assert (again.kind, again.dtype) == ("latents", "bfloat16")
    assert np.array_equal(again.checksums, index.checksums)
    assert not verify_split(index.folder).problems


def test_missing_and_damaged_shards_are_refused(tmp_path):
    index = make_shards(tmp_path / "toy" / "train", shard_bytes=9_000)
    lose_index(index)
    for number in (0, 2, len(index.shards) - 1):
        path = index.folder / index.shards[number]
        path.rename(tmp_path / "away")
        with pytest.raises(ShardError, match="missing"):
            repair_index(index.folder)
        data = (tmp_path / "away").read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ShardError, match=path.name):
            repair_index(index.folder)
        (tmp_path / "away").rename(path)
    with pytest.raises(FileNotFoundError, match="no tars"):
        repair_index(tmp_path)


def test_the_command(tmp_path, capsys):
    index = make_shards(tmp_path / "toy" / "train")
    lose_index(index)
    with pytest.raises(SystemExit):
        run_command(verify, [str(tmp_path)])
    verify([str(tmp_path), "--repair"])
    out = capsys.readouterr().out
    assert "index made again (3 trajectories)" in out
    assert "sound" in out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_shards_of_other_writers(tmp_path):
    """webdataset.TarWriter in our layout -> an index -> windows."""
    folder = tmp_path / "toy" / "train"
    folder.mkdir(parents=True)
    data = np.random.default_rng(0).standard_normal((4, 6, 3, 8, 8)).astype(np.float32)
    fields = [{"name": "density", "rank": 0}, {"name": "momentum", "rank": 1}]
    with webdataset.TarWriter(str(folder / "other.tar"), mtime=0) as tar:
        for i, x in enumerate(data):
            meta = {**make_meta(folder, i, x.shape), "dtype": "float32", "fields": fields}
            tar.write({"__key__": f"t{i}", "fields.npy": x, "meta.json": meta})
    repair_index(folder)
    assert not verify_split(folder).problems
    windows = ShardDataset(folder, length=6)
    assert all(np.array_equal(windows[i]["x"].transpose(0, 1), data[i]) for i in range(4))
    assert windows.fields == ("density", "momentum_x", "momentum_y")


def test_tar_extracts_them(tmp_path):
    data = np.random.default_rng(0).standard_normal((2, 5, 3, 8, 8)).astype(np.float32)
    index = make_shards(tmp_path / "toy" / "train", data)
    subprocess.run(["tar", "-xf", index.folder / index.shards[0], "-C", tmp_path], check=True)
    assert np.array_equal(np.load(tmp_path / "made-0001.fields.npy"), data[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_streaming(tmp_path, dtype):
    data = np.random.default_rng(0).standard_normal((4, 12, 3, 8, 8)).astype(np.float32)
    index = make_shards(tmp_path / "toy" / "train", data, shard_bytes=20_000, dtype=dtype)
    paths = [index.folder / name for name in index.shards]
    found = list(stream_windows(paths, 3, 2, shuffle=0))
    windows = ShardDataset(index.folder, 3, 2)
    assert len(found) == len(windows) == 32
    for i, item in enumerate(found):
        assert np.array_equal(item["x"], windows[i]["x"])
        assert np.array_equal(item["label"], windows[i]["label"])
        assert (item["key"], item["start"]) == (windows.meta(i // 8)["key"], i % 8)
    stored = decode_frames(encode_frames(data[1], dtype), dtype)
    assert np.array_equal(found[9]["x"].transpose(0, 1), stored[1:6:2])
    stream = stream_windows([f"pipe:cat {path}" for path in paths], 3, 2, shuffle=10)
    passes = [[(w["key"], w["start"]) for w in stream] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted((w["key"], w["start"]) for w in found)
    assert passes[0] != passes[1]
    with pytest.raises(ValueError, match="out of range"):
        stream_windows(paths, 0)


def test_two_hundred_corruptions_are_all_caught(tmp_path):
    """Bit flips, truncations, deletions, swapped indexes: an error before any wrong sample."""
    index = make_shards(tmp_path / "a" / "train", shard_bytes=9_000)
    other = make_shards(tmp_path / "b" / "train", seed=1, shard_bytes=9_000)
    folder, rng = index.folder, np.random.default_rng(0)
    sound = {path: path.read_bytes() for path in folder.iterdir()}
    swapped = (other.folder / "index.npz").read_bytes()
    frame = index.frame_bytes
    for attempt in range(200):
        path = folder / index.shards[int(rng.integers(len(index.shards)))]
        kind = ("flip", "truncate", "delete", "swap")[attempt % 4]
        if kind == "flip":
            row = int(
                rng.choice(
                    np.flatnonzero(index.places(np.arange(36))[0] == index.shards.index(path.name))
                )
            )
            data = bytearray(sound[path])
            data[int(index.places(row)[1]) + int(rng.integers(frame))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            with pytest.raises(ShardError, match=rf"{path.name}: checksum .* made-000\d.* offset"):
                ShardDataset(folder)[row]
        elif kind == "truncate":
            path.write_bytes(sound[path][: int(rng.integers(len(sound[path])))])
            with pytest.raises(ShardError, match=path.name):
                ShardDataset(folder)
        elif kind == "delete":
            path.unlink()
            with pytest.raises(ShardError, match=f"{path.name}: shard missing"):
                ShardDataset(folder)
        else:
            (folder / "index.npz").write_bytes(swapped)
            with pytest.raises(ShardError):
                ShardDataset(folder)[int(rng.integers(36))]
            (folder / "index.npz").write_bytes(sound[folder / "index.npz"])
        path.write_bytes(sound[path])
    assert not verify_split(folder).problems
