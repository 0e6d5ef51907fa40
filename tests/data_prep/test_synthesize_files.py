"""Synthesized datasets: read by The Well's own reader, repeatable, resumable, atomic."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from the_well.data import WellDataset

from data_prep.cli.synthesize import main
from data_prep.synthesize.euler import EulerSolver, primitive
from data_prep.synthesize.families import FAMILIES, GASES
from data_prep.synthesize.generate import Request, generate
from data_prep.synthesize.initial import multi_quadrants
from data_prep.synthesize.well_writer import WellSpec, WellWriter
from data_prep.well import WellFile
from data_prep.well_to_shards import check_files
from lola_ds.cli.common import run_command
from lola_ds.config import compose
from lola_ds.fields import Standardize
from lola_ds.nn.layers import periodic_axes

ROOT = Path(__file__).resolve().parents[2]


def request(**changes) -> Request:
    """A small request."""
    arguments = {
        "dataset": "euler_periodic",
        "resolution": 16,
        "trajectories": {"train": 5, "valid": 2},
        "steps": 4,
        "parameters": {"gamma": (1.4, 1.13)},
    }
    return Request(**{**arguments, **changes})


def digests(root: Path) -> dict[str, str]:
    """The digest of every file below a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def well(tmp_path_factory) -> Path:
    """A root with the small request's dataset."""
    root = tmp_path_factory.mktemp("well")
    generate(request(), root, show_progress=False)
    return root


def test_files_are_named_and_shared_out_as_in_the_well(well):
    name = "euler_multi_quadrants_periodicBC"
    assert [*digests(well)] == [
        f"{name}/data/train/{name}_gamma_1.13_C3H8_16.hdf5",
        f"{name}/data/train/{name}_gamma_1.4_Dry_air_20.hdf5",
        f"{name}/data/valid/{name}_gamma_1.13_C3H8_16.hdf5",
        f"{name}/data/valid/{name}_gamma_1.4_Dry_air_20.hdf5",
    ]


def test_well_dataset_reads_the_values(well):
    """Fields in The Well's order, γ, boundaries and grids, through The Well's own class."""
    dataset = WellDataset(
        well_base_path=str(well),
        well_dataset_name="euler_multi_quadrants_periodicBC",
        well_split_name="train",
        n_steps_input=1,
        n_steps_output=3,
    )
    metadata = dataset.metadata
    assert metadata.dataset_name == "euler_multi_quadrants_periodicBC"
    assert metadata.spatial_resolution == (16, 16)
    assert metadata.field_names == {
        0: ["energy", "density", "pressure"],
        1: ["momentum_x", "momentum_y"],
        2: [],
    }
    assert metadata.constant_scalar_names == ["gamma"]
    assert metadata.scalar_names == []
    assert metadata.boundary_condition_types == ["PERIODIC"]
    assert metadata.n_trajectories_per_file == [2, 3]
    assert metadata.n_steps_per_trajectory == [4, 4]
    assert metadata.grid_type == "cartesian"

    sample = dataset[3]  # the second trajectory of γ = 1.4
    assert sample["constant_scalars"].tolist() == [pytest.approx(1.4)]
    assert sample["boundary_conditions"].tolist() == [[2, 2], [2, 2]]
    assert sample["space_grid"][3, 5].tolist() == [3.5 / 16, 5.5 / 16]
    times = torch.cat((sample["input_time_grid"], sample["output_time_grid"]))
    assert times.tolist() == pytest.approx([0, 0.015, 0.03, 0.045])

    rng = np.random.default_rng((0, 0, 0, 1400, 1))
    U = torch.from_numpy(multi_quadrants(rng, (16, 16), (True, True), 1.4))[None].float()
    gamma = torch.tensor([1.4])
    solver = EulerSolver((1 / 16, 1 / 16), (True, True))
    frames = torch.cat((sample["input_fields"], sample["output_fields"]))
    for frame, V in zip(frames, solver.evolve(U, gamma, [0.015 * i for i in range(4)])):
        expected = (V[0, 3], V[0, 0], primitive(V, gamma)[0, 3], V[0, 1], V[0, 2])
        assert torch.equal(frame, torch.stack(expected, dim=-1))


def test_open_boundaries(tmp_path):
    generate(request(dataset="euler_open", trajectories={"test": 1}), tmp_path, False)
    dataset = WellDataset(
        well_base_path=str(tmp_path),
        well_dataset_name="euler_multi_quadrants_openBC",
        well_split_name="test",
    )
    assert dataset[0]["boundary_conditions"].tolist() == [[1, 1], [1, 1]]
    assert dataset[0]["constant_scalars"].tolist() == [pytest.approx(1.4)]


def test_every_part_of_the_format(well):
    path = next(iter(sorted(well.rglob("train/*1.4*.hdf5"))))
    varying = {"sample_varying", "time_varying"}
    with h5py.File(path) as file:
        assert file.attrs["n_spatial_dims"] == 2
        assert file.attrs["n_trajectories"] == 3
        assert [*file.attrs["simulation_parameters"]] == ["gamma"]
        assert file.attrs["gamma"] == 1.4
        assert [*file["dimensions"].attrs["spatial_dims"]] == ["x", "y"]
        assert file["scalars/gamma"].shape == ()
        for dataset in (*file["dimensions"].values(), *file["scalars"].values()):
            assert varying == {*dataset.attrs}
            assert dataset.dtype == np.float32
        for dim in "xy":
            boundary = file[f"boundary_conditions/{dim}_periodic"]
            assert {*boundary.attrs} == {
                "associated_dims",
                "associated_fields",
                "bc_type",
            } | varying
            assert boundary["mask"].dtype == bool
            assert np.flatnonzero(boundary["mask"]).tolist() == [0, 15]
        for rank, names in enumerate((["energy", "density", "pressure"], ["momentum"], [])):
            group = file[f"t{rank}_fields"]
            assert [*group.attrs["field_names"]] == names
            for name in names:
                assert group[name].shape == (3, 4, 16, 16) + (2,) * rank
                assert group[name].dtype == np.float32
                assert {*group[name].attrs} == {"dim_varying"} | varying
                assert group[name].attrs["dim_varying"].tolist() == [True, True]


def test_splits_and_trajectories_differ(well):
    states = []
    for path in well.rglob("*.hdf5"):
        with h5py.File(path) as file:
            states += [*file["t0_fields/density"][:, 0]]
    assert len({state.tobytes() for state in states}) == 7


def test_same_seed_same_bytes(well, tmp_path):
    generate(request(), tmp_path / "again", False)
    generate(request(seed=1), tmp_path / "other", False)
    assert digests(tmp_path / "again") == digests(well)
    assert not {*digests(tmp_path / "other").values()} & {*digests(well).values()}


def test_batches_do_not_show_in_the_files(well, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.synthesize.generate.BATCH_CELLS", 2 * 16**2)
    generate(request(), tmp_path, False)
    assert digests(tmp_path) == digests(well)


def test_complete_files_are_kept_and_unreadable_ones_made_again(tmp_path, well):
    paths = generate(request(), tmp_path, False)
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[0].write_bytes(paths[0].read_bytes()[:5000])
    generate(request(), tmp_path, False)
    assert [path.stat().st_mtime_ns for path in paths[1:]] == stamps[1:]
    assert digests(tmp_path) == digests(well)


def test_other_data_is_never_overwritten(well, tmp_path):
    before = digests(well)
    with pytest.raises(ValueError, match="seed=0 instead of 1") as error:
        generate(request(seed=1), well, False)
    assert "choose another out=" in str(error.value)
    with pytest.raises(ValueError, match="is not of this dataset"):
        generate(request(parameters={"gamma": (1.4,)}), well, False)
    assert digests(well) == before

    foreign = tmp_path / next(iter(before))
    foreign.parent.mkdir(parents=True)
    h5py.File(foreign, "w").close()
    with pytest.raises(ValueError, match="not made by lola-ds"):
        generate(request(), tmp_path, False)


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    advance, calls = EulerSolver.advance, []

    def fail(self, *arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return advance(self, *arguments)

    monkeypatch.setattr(EulerSolver, "advance", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(request(), tmp_path, False)
    assert digests(tmp_path) == {}


def test_killed_run_leaves_no_final_name_and_is_completed_by_the_same_command(tmp_path):
    words = ["dataset=euler_periodic", "resolution=16", "trajectories=4", "steps=30", "gammas=1.4"]
    command = "import sys; from data_prep.cli.synthesize import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", command, *words, f"out={tmp_path / 'killed'}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not [*tmp_path.rglob("*.partial")]:
        assert time.monotonic() < deadline, "nothing was written within a minute"
        assert process.poll() is None, "the command ended before it wrote anything"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [*tmp_path.rglob("*.partial")]
    assert not [*tmp_path.rglob("*.hdf5")]

    main([*words, f"out={tmp_path / 'killed'}"])
    main([*words, f"out={tmp_path / 'whole'}"])
    assert len(digests(tmp_path / "whole")) == 3
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_writer_refuses_missing_states(tmp_path):
    spec = WellSpec(
        dataset="toy",
        trajectories=2,
        times=np.arange(1),
        grid={"x": np.arange(4)},
        boundaries={"x": "WALL"},
        scalar_fields=("height",),
        vector_fields=(),
        parameters={},
        provenance="",
    )
    with (
        pytest.raises(ValueError, match="only 1 of 2 states"),
        WellWriter(tmp_path / "toy.hdf5", spec) as writer,
    ):
        writer.write(0, 0, {"height": np.zeros(4)})
    assert not [*tmp_path.iterdir()]

    with (
        pytest.raises(ValueError, match="depth"),
        WellWriter(tmp_path / "toy.hdf5", spec) as writer,
    ):
        writer.write(0, 0, {"depth": np.zeros(4)})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=WELL"], "missing dataset="),
        (["dataset=heat", "out=WELL"], "dataset=heat is not one of euler_periodic, euler_open"),
        (["dataset=euler_open", "out=WELL", "steps=1"], "at least 2 states"),
        (["dataset=euler_open", "out=WELL", "seed=-1"], "a seed must not be negative"),
        (["dataset=euler_open", "out=WELL", "trajectories=0"], "at least 1"),
        (["dataset=euler_open", "out=WELL", "resolution=2"], "at least 4 cells"),
        (["dataset=euler_open", "out=WELL", "gammas=1.4,2.5"], "2.5 is not one of The Well's"),
        (["dataset=euler_open", "out=WELL", "gammas=1.4,1.4"], "give each value once"),
        (["dataset=euler_open", "out=WELL", "gammas=air"], "expected a number"),
        (["dataset=euler_open", "out=WELL", "size=3"], "unknown key 'size'"),
        (["dataset=euler_open", "out=WELL", "rayleigh=1e5"], "euler_open has the parameters gamma"),
        (["dataset=rayleigh_benard", "out=WELL", "resolution=50"], "a multiple of 4"),
        (["dataset=rayleigh_benard", "out=WELL", "prandtl=0"], "Prandtl=0: must be positive"),
        (["dataset=gravity_cooling", "out=WELL", "rho0=0"], "rho0=0: must be positive"),
        (["dataset=gravity_cooling", "out=WELL", "metallicity=-1"], "Z=-1: must not be negative"),
    ],
)
def test_mistakes_end_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_command(main, words)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_rayleigh_benard_as_the_well_has_it(tmp_path):
    words = ["rayleigh=1e4,1e5", "prandtl=2e-1", "resolution=32", "trajectories=2", "steps=3"]
    main(["dataset=rayleigh_benard", f"out={tmp_path}", *words, "valid=1", "test=1"])
    assert [*digests(tmp_path)] == [
        f"rayleigh_benard/data/{split}/rayleigh_benard_Rayleigh_{number}_Prandtl_2e-1.hdf5"
        for split, numbers in (("test", ["1e4"]), ("train", ["1e4", "1e5"]), ("valid", ["1e4"]))
        for number in numbers
    ]
    dataset = WellDataset(
        well_base_path=str(tmp_path),
        well_dataset_name="rayleigh_benard",
        well_split_name="train",
        n_steps_output=2,
    )
    metadata = dataset.metadata
    assert metadata.field_names == {
        0: ["buoyancy", "pressure"],
        1: ["velocity_x", "velocity_y"],
        2: [],
    }
    assert metadata.constant_scalar_names == ["Rayleigh", "Prandtl"]
    assert metadata.spatial_resolution == (32, 8)
    sample = dataset[1]
    assert sample["constant_scalars"].tolist() == [1e5, pytest.approx(0.2)]
    assert sample["boundary_conditions"].tolist() == [[2, 2], [0, 0]]
    assert sample["space_grid"][3, :, 0].tolist() == [0.375] * 8
    y = [(1 - np.cos(np.pi * (j + 0.5) / 8)) / 2 for j in range(8)]
    assert sample["space_grid"][3, :, 1].tolist() == pytest.approx(y)
    assert sample["output_time_grid"].tolist() == pytest.approx([0.25, 0.5])
    frame = sample["output_fields"][-1]  # warm below, cold above, moving
    assert frame[:, 0, 0].mean() > 0.8
    assert frame[:, -1, 0].mean() < 0.2
    assert frame[..., 2:].abs().max() > 1e-3
    with h5py.File(next(tmp_path.rglob("train/*1e4*.hdf5"))) as file:
        assert [*file["boundary_conditions"]] == ["x_periodic", "y_wall_dirichlet"]
        assert file["boundary_conditions/y_wall_dirichlet"].attrs["bc_type"] == "WALL"


def test_gravity_cooling_as_the_well_has_it(tmp_path):
    words = ["rho0=0.445", "metallicity=0,0.1", "temperature=10", "resolution=8", "steps=2"]
    command = ["dataset=gravity_cooling", f"out={tmp_path}", *words]
    main([*command, "trajectories=2", "valid=1", "test=1"])
    name = "turbulence_gravity_cooling"
    folder = tmp_path / name / "data" / "train"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}_rho0_0.445_Z_0.1_T0_10.hdf5",
        f"{name}_rho0_0.445_Z_0_T0_10.hdf5",
    ]
    dataset = WellDataset(
        well_base_path=str(tmp_path), well_dataset_name=name, well_split_name="train"
    )
    metadata = dataset.metadata
    assert metadata.field_names == {
        0: ["density", "pressure", "temperature"],
        1: ["velocity_x", "velocity_y", "velocity_z"],
        2: [],
    }
    assert metadata.constant_scalar_names == ["rho0", "Z", "T0"]
    assert metadata.spatial_resolution == (8, 8, 8)
    sample = dataset[0]
    assert sample["constant_scalars"].tolist() == pytest.approx([0.445, 0.1, 10])
    assert sample["boundary_conditions"].tolist() == [[1, 1]] * 3
    start = sample["input_fields"][0]
    assert start[..., 0].std() < 1e-6
    assert start[..., 2].numpy() == pytest.approx(10, rel=1e-4)
    assert sample["output_time_grid"].tolist() == pytest.approx([0.02])
    with h5py.File(folder / f"{name}_rho0_0.445_Z_0.1_T0_10.hdf5") as file:
        assert [*file["boundary_conditions"]] == ["x_open", "y_open", "z_open"]


@pytest.mark.parametrize("dataset", FAMILIES)
def test_configurations_fit_their_datasets(dataset, tmp_path):
    """`configs/dataset/` says what is in the files: fields, scalars, axes, transforms."""
    resolution = 32 if dataset == "rayleigh_benard" else 8
    request = Request(dataset, {"train": 1}, steps=2, resolution=resolution)
    [path] = generate(request, tmp_path, show_progress=False)
    config = compose(["task=autoencoder", "run=RUN", "data=SHARDS", f"dataset={dataset}"])[
        "dataset"
    ]
    assert config["physics"] == [request.physics]
    check_files([path], config["fields"])
    with WellFile(path) as file:
        assert list(file.axes) == config["dimensions"]
        assert list(file.scalars(0)) == config["scalars"]
        wraps = tuple(sides == [2, 2] for sides in file.boundary(0).values())
        assert periodic_axes(config["periodic"], len(wraps)) == wraps
        x = torch.from_numpy(file.read(0, slice(0, 2)))
    z = Standardize(**config["stats"], transform=config["transform"])(x)
    assert z.isfinite().all()
    assert z.abs().max() < 10


@pytest.mark.parametrize("dataset", ["rayleigh_benard", "gravity_cooling"])
def test_larger_datasets_begin_with_smaller_ones(dataset, tmp_path):
    """And a batch of several files gives what batches of one give, to rounding."""
    values: dict = {"steps": 3, "resolution": {"rayleigh_benard": 32}.get(dataset, 8)}
    states = []
    for number in (4, 8):
        out = tmp_path / str(number)
        generate(Request(dataset, {"valid": number}, **values), out, show_progress=False)
        with h5py.File(sorted(out.rglob("*.hdf5"))[0]) as file:
            states.append(file["t1_fields/velocity"][:1])
    np.testing.assert_allclose(*states, atol=1e-6)


def test_gases_are_the_wells_ten():
    assert sorted(GASES) == [1.13, 1.22, 1.3, 1.33, 1.365, 1.4, 1.404, 1.453, 1.597, 1.76]
