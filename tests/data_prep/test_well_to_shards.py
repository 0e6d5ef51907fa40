import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from well_files import write_split

from data_prep.cli.shard import main as shard
from data_prep.well import WellFile
from data_prep.well_to_shards import shard_split, trajectory_key
from lola_ds.cli.common import run_command
from lola_ds.cli.verify import main as verify
from lola_ds.data import ShardDataset, open_index, verify_split

FRAME = 8 * 8 * 6 * 4  # 8 channels on 8 × 6


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_bitwise(tmp_path):
    paths = write_split(tmp_path / "well", files=2)
    index = shard_split(tmp_path / "well", tmp_path / "shards", "toy", "train")
    windows = ShardDataset(tmp_path / "shards" / "toy" / "train", length=7)
    assert windows.trajectories == len(windows) == 4
    for file_number, path in enumerate(paths):
        with WellFile(path) as file:
            for i in range(2):
                item = windows[2 * file_number + i]
                expected = file.read(i, slice(None))
                assert item["x"].transpose(0, 1).numpy().tobytes() == expected.tobytes()
                gamma, drag = np.float32(1.4 + file_number / 10), (0.5, 1.5)[i]
                assert item["label"].tolist() == [gamma, drag, 2, 2, 0, 1]
    assert windows.fields[:4] == ("density", "floor", "momentum_x", "momentum_y")
    assert windows.fields[4:] == ("stress_xx", "stress_xy", "stress_yx", "stress_yy")
    assert windows.scalars == ("gamma", "drag")
    assert index.meta(3)["source"] == "toy_gamma_1.1.hdf5"
    assert not verify_split(index.folder).problems


def test_workers_do_not_change_a_byte(tmp_path):
    write_split(tmp_path / "well", files=3)
    for workers in (1, 2):
        out = tmp_path / f"shards{workers}"
        shard_split(tmp_path / "well", out, "toy", "train", workers=workers, shard_bytes=10 * FRAME)
    assert tree(tmp_path / "shards1") == tree(tmp_path / "shards2")
    assert len(list((tmp_path / "shards1").rglob("*.tar"))) == 6


def test_killed_processes_leave_nothing_half_done(tmp_path):
    write_split(tmp_path / "well", files=1, trajectories=150, steps=40)
    arguments = [tmp_path / "well", "toy", "train"]
    code = (
        "import sys; from data_prep.well_to_shards import shard_split as s\n"
        "s(sys.argv[1], sys.argv[2], 'toy', 'train', shard_bytes=1_000_000)"
    )
    shard_split(arguments[0], tmp_path / "whole", *arguments[1:], shard_bytes=1_000_000)
    expected, out = tree(tmp_path / "whole"), tmp_path / "killed"
    command = [sys.executable, "-c", code, str(arguments[0]), str(out)]
    partial, kills = out / "toy" / ".train.partial" / "shards", 0
    for shards in (2, 5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(partial.glob("*.tar"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if not kills:
            break
        assert not (out / "toy" / "train").exists()
        for path in partial.glob("*.tar"):
            assert path.read_bytes() == expected[f"toy/train/{path.name}"]
    assert kills
    shard_split(arguments[0], out, *arguments[1:], shard_bytes=1_000_000)
    assert tree(out) == expected


def test_workers_end_with_their_parent(tmp_path):
    write_split(tmp_path / "well", files=2, trajectories=100, steps=40)
    code = (
        "import sys; from data_prep.well_to_shards import shard_split as s\n"
        "if __name__ == '__main__': s(sys.argv[1], sys.argv[2], 'toy', 'train', workers=2)"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, script, tmp_path / "well", tmp_path / "out"]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    partial = tmp_path / "out" / "toy" / ".train.partial" / "shards"
    while process.poll() is None and not list(partial.glob("*.tmp")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(process.pid):
        time.sleep(0.05)
    assert not _alive(process.pid)
    shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_again_does_nothing_and_changes_are_noticed(tmp_path, caplog):
    caplog.set_level("INFO", "lola_ds")
    paths = write_split(tmp_path / "well")
    shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")
    before = tree(tmp_path / "out")
    shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")
    assert "complete already" in caplog.text
    with pytest.raises(FileExistsError, match="made with dtype float32, now float16"):
        shard_split(tmp_path / "well", tmp_path / "out", "toy", "train", dtype="float16")
    with h5py.File(paths[1], "r+") as raw:
        raw["t0_fields/density"][0, 0, 0, 0] = 3
    with pytest.raises(FileExistsError, match="made with sources"):
        shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")
    assert tree(tmp_path / "out") == before


def test_nan_names_file_trajectory_step_and_field(tmp_path):
    paths = write_split(tmp_path / "well", files=1)
    with h5py.File(paths[0], "r+") as raw:
        raw["t1_fields/momentum"][1, 5, 2, 2, 1] = np.nan
    message = r"toy_gamma_1\.0\.hdf5: trajectory 1, step 5, field momentum_y: NaN"
    with pytest.raises(ValueError, match=message):
        shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match=message):
        index = shard_split(tmp_path / "well", tmp_path / "out", "toy", "train", allow_nan=True)
    assert index.header["nonfinite"] == [[1, 5, "momentum_y"]]


def test_nan_after_complete_shards_keeps_them_for_the_next_run(tmp_path):
    paths = write_split(tmp_path / "well", files=2)
    with h5py.File(paths[1], "r+") as raw:
        raw["t0_fields/density"][1, 0, 0, 0] = np.inf
    arguments = (tmp_path / "well", tmp_path / "out", "toy", "train")
    with pytest.raises(ValueError, match="step 0, field density"):
        shard_split(*arguments, shard_bytes=10 * FRAME)
    assert not (tmp_path / "out" / "toy" / "train").exists()
    with pytest.warns(UserWarning, match="step 0"):
        shard_split(*arguments, shard_bytes=10 * FRAME, allow_nan=True)
    assert not verify_split(tmp_path / "out" / "toy" / "train").problems


def test_files_must_agree(tmp_path):
    write_split(tmp_path / "well", files=1)
    write_split(tmp_path / "other", files=2, extended=False)
    (tmp_path / "other/toy/data/train/toy_gamma_1.1.hdf5").rename(
        tmp_path / "well/toy/data/train/toy_gamma_1.1.hdf5"
    )
    with pytest.raises(ValueError, match=r"toy_gamma_1\.1\.hdf5: .* differs from toy_gamma_1\.0"):
        shard_split(tmp_path / "well", tmp_path / "out", "toy", "train")
    assert not (tmp_path / "out").exists()


def test_keys_have_no_dots(tmp_path):
    assert trajectory_key(tmp_path / "a_gamma_1.4.hdf5", 3) == "a_gamma_1-4-0003"


def test_commands(tmp_path, capsys):
    well, out = tmp_path / "well", tmp_path / "shards"
    for split in ("train", "valid"):
        write_split(well, split=split, files=1)
    shard([f"source={well}", f"out={out}", "dataset=toy"])
    assert "2 trajectories, 14 frames, 1 shards" in capsys.readouterr().out
    assert sorted(p.name for p in (out / "toy").iterdir()) == ["train", "valid"]
    verify([str(out / "toy" / "train")])
    assert "sound (2 trajectories, 14 frames)" in capsys.readouterr().out
    path = next((out / "toy" / "valid").glob("*.tar"))
    data = bytearray(path.read_bytes())
    data[open_index(path.parent).places(10)[1] + 77] ^= 4
    path.write_bytes(data)
    with pytest.raises(SystemExit) as exit_:
        run_command(verify, [str(out)])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert f"{path.name}: toy_gamma_1-0-0001, frame 3" in captured.err.splitlines()[-1]
    assert "checksum mismatch" in captured.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=away"], "no dataset 'away'"),
        (["dataset=toy", "split=tests"], "split=tests is unknown"),
        (["dataset=toy", "split=test"], "lacks the split 'test'"),
        (["dataset=toy", "dtype=float8"], "dtype=float8 is unknown"),
        (["dataset=toy", "workers=-1"], "workers=-1"),
        (["dataset=euler_periodic"], "no dataset 'euler_multi_quadrants_periodicBC'"),
        (["dataset=toy", "colour=red"], "unknown key 'colour'"),
        ([], "missing dataset"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, words, message):
    write_split(tmp_path / "well", files=1)
    command = [f"source={tmp_path / 'well'}", f"out={tmp_path / 'out'}", *words]
    with pytest.raises(SystemExit) as exit_:
        run_command(shard, command)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_one_bad_file_stops_the_command_before_the_first_byte(tmp_path):
    write_split(tmp_path / "well", split="train")
    (path,) = write_split(tmp_path / "well", split="valid", files=1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"valid/toy_gamma_1\.0\.hdf5: not a whole HDF5 file"):
        shard([f"source={tmp_path / 'well'}", f"out={tmp_path / 'out'}", "dataset=toy"])
    assert not (tmp_path / "out").exists()


def test_configured_fields_are_checked(tmp_path):
    name = "euler_multi_quadrants_periodicBC"
    write_split(tmp_path / "well", dataset=name, files=1)
    with pytest.raises(ValueError, match=r"holds the fields density, floor.* expects energy"):
        shard([f"source={tmp_path / 'well'}", f"out={tmp_path / 'out'}", "dataset=euler_periodic"])
