import warnings

import h5py
import numpy as np
import pytest
from well_files import write_split, write_well

from data_prep.well import WellFile, WellTrajectory, describe_grid, list_files, list_splits


def reference(path, dims):
    """What The Well's own reader gives for the first trajectory: (T, C, *S), boundary, scalars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports
        from the_well.data import WellDataset

        data = WellDataset(
            path=str(path.parent), n_steps_input=7, n_steps_output=0, use_normalization=False
        )
        sample = data[0]
    fields = sample["input_fields"].numpy()
    names = [name for names in data.metadata.field_names.values() for name in names]
    return np.moveaxis(fields, -1, 1), sample, names


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_reads_what_the_well_reads(tmp_path, dims, compression):
    path = write_well(tmp_path / "a.hdf5", dims=dims, compression=compression, extended=False)
    expected, sample, names = reference(path, dims)
    with WellFile(path) as file:
        x = file.read(0, slice(None))
        meta = file.meta(0, "train")
    assert names == ["density", *(f"momentum_{axis}" for axis in "xyz"[:dims])]
    assert x.dtype == np.float32
    assert np.array_equal(x, expected)
    codes = [meta["boundary"][axis] for axis in "xyz"[:dims]]
    assert codes == sample["boundary_conditions"].tolist()
    assert codes == [[2, 2], [0, 1], [1, 1]][:dims]
    assert meta["scalars"] == {"gamma": 1.4}


def test_tensors_follow_vectors_and_constant_axes_are_expanded(tmp_path):
    path = write_well(tmp_path / "a.hdf5")
    with WellFile(path) as file, h5py.File(path) as raw:
        x = file.read(1, slice(2, 5))
        assert file.fields == [("density", 0), ("floor", 0), ("momentum", 1), ("stress", 2)]
        assert x.shape == (3, 8, 8, 6)
        floor = raw["t0_fields/floor"][1, 2:5]  # (3, 8), no y
        assert np.array_equal(x[:, 1], np.repeat(floor[:, :, None], 6, axis=2))
        stress = raw["t2_fields/stress"][1, 2:5]
        assert np.array_equal(x[:, 4:], np.moveaxis(stress.reshape(3, 8, 6, 4), -1, 1))


def test_constant_in_time_and_shared_fields_are_expanded(tmp_path):
    path = write_well(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as raw:
        values = raw["t0_fields/floor"][0, 0]
        del raw["t0_fields/floor"]
        floor = raw["t0_fields"].create_dataset("floor", data=values)
        floor.attrs.update(dim_varying=[True, False], sample_varying=False, time_varying=False)
    with WellFile(path) as file:
        x = file.read(1, slice(0, 3))
    assert np.array_equal(x[:, 1], np.broadcast_to(values[:, None], (3, 8, 6)))


def test_trajectory_reads_slices(tmp_path):
    with WellFile(write_well(tmp_path / "a.hdf5")) as file:
        trajectory = WellTrajectory(file, 1)
        assert trajectory.shape == (7, 8, 8, 6)
        assert np.array_equal(trajectory[3:5], file.read(1, slice(None))[3:5])


def test_meta(tmp_path):
    with WellFile(write_well(tmp_path / "a.hdf5")) as file:
        meta = file.meta(1, "valid")
    assert meta["scalars"] == {"gamma": 1.4, "drag": 1.5}
    assert meta["time"]["size"] == 7
    assert meta["time"]["step"] == pytest.approx(0.015)
    assert meta["space"]["x"]["start"] == pytest.approx(0.0625)
    assert len(meta["space"]["y"]["values"]) == 6
    assert (meta["source"], meta["trajectory"], meta["split"]) == ("a.hdf5", 1, "valid")


def test_masks(tmp_path):
    path = write_well(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as raw:
        raw["boundary_conditions/x_periodic/mask"][:] = False  # unmarked: open
        mask = np.zeros((8, 6), bool)  # a mask over two axes: part of y's upper side
        mask[2, -1] = True
        wall = raw["boundary_conditions/y_wall"]
        wall.attrs["associated_dims"] = ["x", "y"]
        del wall["mask"]
        wall.create_dataset("mask", data=mask)
        with WellFile(path) as file:
            assert file.boundary(0) == {"x": [1, 1], "y": [1, 1]}
        wall["mask"][:, -1] = True
        with WellFile(path) as file:
            assert file.boundary(0) == {"x": [1, 1], "y": [1, 0]}
        wall.attrs["bc_type"] = "SLIPPERY"
        with WellFile(path) as file, pytest.raises(ValueError, match="SLIPPERY"):
            file.boundary(0)


def test_describe_grid():
    uniform = np.linspace(0, 1, 512, endpoint=False, dtype=np.float32) + np.float32(0.5 / 512)
    assert describe_grid(uniform)["step"] == pytest.approx(1 / 512)
    assert "values" in describe_grid(np.cos(np.linspace(0, np.pi, 128)))
    assert describe_grid(np.array([3.0])) == {"start": 3.0, "step": 0.0, "size": 1}


def test_lists_files(tmp_path):
    paths = write_split(tmp_path / "datasets", files=3)
    assert list_files(tmp_path, "toy", "train") == paths
    assert list_files(tmp_path / "datasets", "toy", "train", ["1.2", "1.0"]) == [paths[0], paths[2]]
    assert list_splits(tmp_path, "toy") == ["train"]
    with pytest.raises(FileNotFoundError, match=r"no dataset 'nothing'.*found: toy"):
        list_files(tmp_path, "nothing", "train")
    with pytest.raises(FileNotFoundError, match="lacks the split 'test'"):
        list_files(tmp_path, "toy", "test")
    with pytest.raises(FileNotFoundError, match="with gamma_9"):
        list_files(tmp_path, "toy", "train", ["gamma_9"])
    with pytest.raises(FileNotFoundError, match="source="):
        list_files(tmp_path / "away", "toy", "train")


def test_truncated_and_foreign_files(tmp_path):
    path = write_well(tmp_path / "a.hdf5")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"a\.hdf5: not a whole HDF5 file"):
        WellFile(path)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(OSError, match=r"a\.hdf5: not a whole HDF5 file"):
        WellFile(path)
    with h5py.File(path, "w") as raw:
        raw["x"] = 1
    with pytest.raises(ValueError, match=r"a\.hdf5: not in The Well's layout"):
        WellFile(path)
    with pytest.raises(FileNotFoundError):
        WellFile(tmp_path / "b.hdf5")


def test_wrong_shapes_are_refused(tmp_path):
    path = write_well(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as raw:
        raw["t1_fields/momentum"].attrs["dim_varying"] = [True, False]
    with pytest.raises(ValueError, match=r"field momentum has shape .* make it"):
        WellFile(path)
