import subprocess
import sys

import h5py
import numpy as np
import pytest
from well_files import write_split

from data_prep.cli.shard import array_task
from data_prep.cli.shard import main as shard
from data_prep.well_to_shards import shard_split
from lola_ds.cli.common import run_command
from lola_ds.data import ShardDataset, verify_split


def write_cache(root, files=2, label=(1.4, 2, 2, 0, 1), name="euler_multi_quadrants_openBC"):
    rng, states = np.random.default_rng(0), []
    for i in range(files):
        path = root / name / "train" / f"gamma_1.{i}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        states.append(rng.standard_normal((3, 7, 4, 8, 6)).astype(np.float32))
        with h5py.File(path, "w") as file:
            file["state"] = states[-1]
            file["label"] = np.tile(np.array(label, np.float32), (3, 1))
    return np.concatenate(states)


def test_bitwise(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "lola_ds")
    states = write_cache(tmp_path / "cache")
    words = [f"source={tmp_path / 'cache'}", f"out={tmp_path / 'out'}", "--latents"]
    shard([*words, "dataset=euler_open"])
    assert "6 trajectories, 42 frames" in capsys.readouterr().out
    folder = tmp_path / "out" / "euler_multi_quadrants_openBC" / "train"
    windows = ShardDataset(folder, length=3, stride=2)
    assert (windows.kind, windows.spec, windows.scalars) == ("latents", None, ("gamma",))
    for i in range(6):
        assert np.array_equal(windows.read_trajectory(i).transpose(0, 1), states[i])
    assert windows[0]["label"].tolist() == [np.float32(1.4), 2, 2, 0, 1]
    assert not verify_split(folder).problems
    shard(words)  # all datasets of the cache; these are there
    assert "complete already" in caplog.text


@pytest.mark.parametrize(
    ("label", "words", "message"),
    [
        ((1.4, 7, 2, 0, 1), [], "do not hold the scalars"),
        ((1.4, 1.5, 2, 2, 0, 1), ["dataset=euler_open"], "do not hold the scalars gamma and 4"),
        ((1.4, 2, 2, 0, 1), ["dataset=euler_periodic"], "holds no latents of euler_multi_quad"),
        ((1.4, 2, 2, 0, 1), ["split=test"], "no split 'test'"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, label, words, message):
    write_cache(tmp_path / "cache", label=label)
    words = [f"source={tmp_path / 'cache'}", f"out={tmp_path / 'out'}", "--latents", *words]
    with pytest.raises(SystemExit):
        run_command(shard, words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_foreign_files_are_refused(tmp_path, capsys):
    write_cache(tmp_path / "cache", files=1)
    path = next((tmp_path / "cache").rglob("*.h5"))
    with h5py.File(path, "r+") as file:
        del file["label"]
    words = [f"source={tmp_path / 'cache'}", f"out={tmp_path / 'out'}", "--latents"]
    with pytest.raises(SystemExit):
        run_command(shard, words)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SystemExit):
        run_command(shard, words)
    first, second = capsys.readouterr().err.splitlines()
    assert "no datasets 'state' and 'label'" in first
    assert "not a whole HDF5 file" in second


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tasks_of_an_array_make_the_same_bytes(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "lola_ds")
    write_split(tmp_path / "well", files=3)
    shard_split(tmp_path / "well", tmp_path / "one", "toy", "train")
    words = [f"source={tmp_path / 'well'}", f"out={tmp_path / 'many'}", "dataset=toy"]
    for task in ("3/4", "1/4", "0/4"):  # the first has no file
        shard([*words, f"task={task}"])
        assert f"task {task} is done, others are not" in capsys.readouterr().out
        assert not (tmp_path / "many" / "toy" / "train").exists()
    shard([*words, "task=2/4"])
    assert contents(tmp_path / "many/toy/train") == contents(tmp_path / "one/toy/train")
    shard([*words, "task=1/4"])
    assert "complete already" in caplog.text
    with pytest.raises(SystemExit):
        run_command(shard, [*words, "task=4/4"])


def test_simultaneous_tasks(tmp_path):
    write_split(tmp_path / "well", files=4)
    shard_split(tmp_path / "well", tmp_path / "one", "toy", "train")
    words = [f"source={tmp_path / 'well'}", f"out={tmp_path / 'many'}", "dataset=toy"]
    command = [sys.executable, "-m", "lola_ds.cli.main", "shard", *words]
    tasks = [subprocess.Popen([*command, f"task={i}/3"], stderr=-1, text=True) for i in range(3)]
    errors = [task.communicate()[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 3, errors
    assert contents(tmp_path / "many/toy/train") == contents(tmp_path / "one/toy/train")
    assert [path.name for path in (tmp_path / "many/toy").iterdir()] == ["train"]


def test_places_in_slurm_arrays():
    place = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert array_task({}) == (0, 1)
    assert array_task({**place, "SLURM_ARRAY_TASK_MIN": "5"}) == (2, 4)
    step = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}
    assert array_task({**place, **step}) == (3, 4)
    with pytest.raises(ValueError, match="task=I/N"):
        array_task(place)
