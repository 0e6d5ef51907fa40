"""`lola-ds convert`: runs of the published code in and out, and what it refuses."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lola_runs import FOLDER, assert_relative, load_run, needs_runs
from torch import Tensor

from lola_ds import load_emulator, load_model
from lola_ds.cli.convert import main
from lola_ds.config import load_config
from lola_ds.emulate import rollout, sample
from lola_ds.models.lola import export_config, import_config, read_state
from lola_ds.objectives import AutoencoderObjective
from lola_ds.train.checkpoint.tensor_file import write_tensors

# What a run of the published code holds, by hand: the names and shapes of a small autoencoder with
# attention in its deepest level, and of a small transformer.
AE = {
    "arch": "dcae",
    "name": "dcae_f2c${.lat_channels}",
    "lat_channels": 3,
    "hid_channels": [4, 8],
    "hid_blocks": [1, 1],
    "attention_heads": {1: 2},
    "latent_noise": 0.01,
    "loss": {"losses": ["vrmse"], "weights": [1.0]},
}
VIT = {
    "arch": "vit",
    "emb_features": 8,
    "hid_channels": 8,
    "hid_blocks": 1,
    "attention_heads": 2,
    "ffn_factor": 2,
    "patch_size": [1, 2, 2],
    "window_size": [3, 3, 3],
    "precondition": None,
}
DATASET = {
    "name": "gravity_cooling",
    "physics": ["turbulence_gravity_cooling"],
    "include_filters": [],
    "dimensions": ["x", "y"],
    "periodic": False,
    "fields": ["density", "velocity_x"],
    "transform": {0: "log_eps"},
    "stats": {"mean": [0.1, 0.0], "std": [1.0, 2.0]},
    "augment": ["log_scalars", "random_axis_flip"],
}


def convolution(name: str, out: int, given: int, size: int = 3) -> dict[str, Sequence[int]]:
    return {f"{name}.weight": (out, given, size, size), f"{name}.bias": (out,)}


def linear(name: str, out: int, given: int) -> dict[str, Sequence[int]]:
    return {f"{name}.weight": (out, given), f"{name}.bias": (out,)}


def block(name: str, channels: int, size: int = 3) -> dict[str, Sequence[int]]:
    return {
        f"{name}.norm.eps": (),
        **convolution(f"{name}.ffn.0", channels, channels, size),
        **convolution(f"{name}.ffn.3", channels, channels, size),
    }


def attention(name: str, channels: int) -> dict[str, Sequence[int]]:
    return {
        f"{name}.attn.0.in_proj_weight": (3 * channels, channels),
        f"{name}.attn.0.in_proj_bias": (3 * channels,),
        **linear(f"{name}.attn.0.out_proj", channels, channels),
    }


def autoencoder_shapes() -> dict[str, Sequence[int]]:
    return {
        **convolution("encoder.descent.0.0", 4, 2),
        **block("encoder.descent.0.1", 4),
        **convolution("encoder.descent.1.0.1", 8, 16),
        **block("encoder.descent.1.1", 8, 1),
        **attention("encoder.descent.1.1", 8),
        **convolution("encoder.descent.1.2", 3, 8),
        **convolution("decoder.ascent.0.0", 8, 3),
        **block("decoder.ascent.0.1", 8, 1),
        **attention("decoder.ascent.0.1", 8),
        **convolution("decoder.ascent.0.2.0", 16, 8),
        **block("decoder.ascent.1.0", 4),
        **convolution("decoder.ascent.1.1", 2, 4),
    }


def transformer_shapes(prefix: str, channels: int) -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {
        **linear("in_proj", 8, 8 * channels),  # 4 points of a patch, their values and mask
        **linear("out_proj", 4 * channels, 8),
        "positional_embedding.0.freqs": (4,),
        **linear("positional_embedding.2", 8, 24),
        "blocks.0.theta": (3, 4),
        **linear("blocks.0.ada_zero.0", 8, 8),
        **linear("blocks.0.ada_zero.2", 32, 8),
        "blocks.0.msa.qkv_proj.weight": (24, 8),
        **linear("blocks.0.msa.y_proj", 8, 8),
        **linear("blocks.0.ffn.0", 16, 8),
        **linear("blocks.0.ffn.3", 8, 16),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def emulator_shapes(task: str) -> dict[str, Sequence[int]]:
    label = {**linear("label_embedding.0", 8, 7), **linear("label_embedding.2", 8, 8)}
    if task == "surrogate":
        return {**transformer_shapes("backbone.", 3), **label}
    return {
        **transformer_shapes("backbone.backbone.", 3),
        "backbone.time_embedding.0.freqs": (4,),
        **linear("backbone.time_embedding.1", 8, 8),
        **linear("backbone.time_embedding.3", 8, 8),
        **{f"backbone.{name}": shape for name, shape in label.items()},
    }


def write_run(folder: Path, config: dict[str, Any], shapes: dict[str, Sequence[int]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {name: torch.tensor(1e-5) for name in state if name.endswith("norm.eps")}
    torch.save(state, folder / "state.pth")
    return folder


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "ae", {"dataset": DATASET, "ae": AE}, autoencoder_shapes())


def emulator_run(folder: Path, task: str) -> Path:
    """A run whose configuration says as little as those of older runs."""
    group: dict[str, Any] = {"surrogate": VIT}
    if task == "diffusion":
        schedule = {"name": "log_logit", "sigma_min": 1e-3, "sigma_max": 1e3}
        group = {"denoiser": {**VIT, "schedule": schedule, "loss": {"distribution": "uniform"}}}
    config = {"dataset": DATASET, **group, "trajectory": {"length": 3, "stride": 2}, "seed": 7}
    return write_run(folder, config, emulator_shapes(task))


def same_state(one: Path, two: Path) -> bool:
    a, b = read_state(one), read_state(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def resolved(path: Path) -> dict[str, Any]:
    return load_config(path / "config.yaml")


def test_an_autoencoder_goes_in_and_out(autoencoder: Path, tmp_path: Path) -> None:
    main(["--from", "lola", str(autoencoder), str(tmp_path / "ours")])
    model = load_model(tmp_path / "ours")
    x = torch.randn(2, 2, 8, 8)
    y, z = model(x)
    assert y.shape == x.shape
    assert z.shape == (2, 3, 4, 4)
    assert resolved(tmp_path / "ours")["ae"]["periodic"] is False
    main(["--to", "lola", str(tmp_path / "ours"), str(tmp_path / "back")])
    assert same_state(autoencoder, tmp_path / "back")
    assert resolved(tmp_path / "back") == resolved(autoencoder)


def test_what_was_written_is_read_back(
    autoencoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In both directions; one bit that changed on the way is found, and nothing is left."""
    main(["--from", "lola", str(autoencoder), str(tmp_path / "ours"), "--verify"])
    main(["--to", "lola", str(tmp_path / "ours"), str(tmp_path / "back"), "--verify"])
    assert capsys.readouterr().out.count("tensors read back, equal bit for bit") == 2

    def write_wrong(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        wrong = dict(tensors)
        name = "decoder.ascent.1.0.norm.eps"
        wrong[name] = wrong[name].nextafter(torch.tensor(1.0))
        write_tensors(path, wrong, metadata)

    monkeypatch.setattr("lola_ds.train.checkpoint.export.write_tensors", write_wrong)
    with pytest.raises(ValueError, match=r"1\.0\.norm\.eps differs from what it was written from"):
        main(["--from", "lola", str(autoencoder), str(tmp_path / "wrong"), "--verify"])
    assert not list(tmp_path.glob("*wrong*"))


def test_a_choice_where_there_is_none_is_refused(
    autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--from", "lola", "--ema", "none", str(autoencoder), str(tmp_path / "ours")])
    assert "--ema none with --from lola" in capsys.readouterr().err
    main(["--from", "lola", str(autoencoder), str(tmp_path / "ours")])
    with pytest.raises(ValueError, match=r"--ema 0\.1: .*ours holds one set of weights"):
        main(["--ema", "0.1", str(tmp_path / "ours"), str(tmp_path / "again")])


@pytest.mark.parametrize("task", ["surrogate", "diffusion"])
@pytest.mark.parametrize("link", [True, False])
def test_an_emulator_brings_its_autoencoder(
    task: str, link: bool, autoencoder: Path, tmp_path: Path
) -> None:
    run = emulator_run(tmp_path / "run", task)
    if link:
        (run / "autoencoder").symlink_to(autoencoder)
    else:
        autoencoder.rename(run / "autoencoder")
    main(["--from", "lola", str(run), str(tmp_path / "ours")])

    config = resolved(tmp_path / "ours")
    assert config["dataset"]["log_scalars"] == ["rho0"]  # T0 enters as it is
    assert config["dataset"]["augment"] == ["random_axis_flip"]
    assert config["trajectory"]["context"]["law"] == "poisson_mod"
    model = load_model(tmp_path / "ours")
    network = model.backbone if task == "surrogate" else model.backbone.backbone
    assert network.periodic == (True, True, True)
    emulator = load_emulator(tmp_path / "ours")
    x = emulator.rollout(torch.rand(2, 8, 8), torch.rand(7), steps=3, sampling_steps=2)
    assert x.shape == (1, 2, 3, 8, 8)
    assert x.isfinite().all()

    main(["--to", "lola", str(tmp_path / "ours"), str(tmp_path / "back")])
    for part in ("", "autoencoder"):
        assert same_state(run / part, tmp_path / "back" / part)
        assert resolved(tmp_path / "back" / part) == resolved(run / part)


def test_an_emulator_without_its_autoencoder_loads_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = emulator_run(tmp_path / "run", "surrogate")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["surrogate"]["channels"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    main(["--from", "lola", str(run), str(tmp_path / "ours")])
    assert "without its autoencoder" in capsys.readouterr().out
    load_model(tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="autoencoder of"):
        load_emulator(tmp_path / "ours")
    main(["--to", "lola", str(tmp_path / "ours"), str(tmp_path / "back")])
    assert same_state(run, tmp_path / "back")


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["torch", "pickle", "yaml"])
def test_no_code_of_a_run_is_executed(how: str, autoencoder: Path, tmp_path: Path) -> None:
    trap, message = tmp_path / "trapped", r"state\.pth is refused"
    state = autoencoder / "state.pth"
    if how == "torch":
        torch.save({"weight": Evil(trap)}, state)
    elif how == "pickle":
        state.write_bytes(pickle.dumps({"weight": Evil(trap)}, protocol=2))
    else:
        config = autoencoder / "config.yaml"
        config.write_text(f"dataset: !!python/object/apply:os.mkdir ['{trap}']\n")
        message = "cannot be read as YAML"
    with pytest.raises(ValueError, match=message):
        main(["--from", "lola", str(autoencoder), str(tmp_path / "out")])
    assert not trap.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ae"]  # no rest of an attempt
    if how == "torch":  # the trap works where it is let
        torch.load(state, weights_only=False)
        assert trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.ascent.1.1.bias"), "1 parameters are missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 are unknown, such as extra"),
        (lambda s: s.update({"decoder.ascent.1.1.bias": torch.zeros(3)}), r"\(3,\) instead of"),
        (lambda s: s.update(nested={"x": torch.zeros(1)}), "not a flat dictionary of tensors"),
    ],
)
def test_states_load_strictly(change, message: str, autoencoder: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = torch.load(autoencoder / "state.pth", weights_only=True)
    change(state)
    torch.save(state, autoencoder / "state.pth")
    with pytest.raises(ValueError, match=message):
        main(["--from", "lola", str(autoencoder), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        main(["--from", "lola", str(tmp_path), str(tmp_path / "out")])
    (autoencoder / "state.pth").unlink()
    with pytest.raises(FileNotFoundError, match="is not a run of lola"):
        main(["--from", "lola", str(autoencoder), str(tmp_path / "out")])
    empty = write_run(tmp_path / "empty", {"dataset": DATASET, "optim": {}}, {})
    with pytest.raises(ValueError, match="not of lola"):
        main(["--from", "lola", str(empty), str(tmp_path / "out")])
    odd = {**DATASET, "physics": ["gray_scott"]}
    run = write_run(tmp_path / "odd", {"dataset": odd, "ae": AE}, autoencoder_shapes())
    with pytest.raises(ValueError, match="gray_scott"):
        main(["--from", "lola", str(run), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("group", "network", "periodic"),
    [
        ("ae", {"lat_channels": 3}, False),
        ("ae", {"lat_channels": 3, "periodic": True}, True),
        ("ae", {"lat_channels": 3, "arch": "vit"}, True),
        ("surrogate", {"arch": "unet"}, False),
        ("surrogate", {"arch": "unet", "periodic": True}, True),
        ("surrogate", {"arch": "dit"}, True),
        ("surrogate", {"arch": None}, True),
    ],
)
def test_what_wraps_is_said(group: str, network: dict[str, Any], periodic: bool) -> None:
    """Convolutions as the run says, whatever the boundaries of its data; windows always."""
    dataset = {**DATASET, "periodic": not periodic, "augment": []}
    config = import_config({"dataset": dataset, group: network}, {}, None, latent_channels=64)
    assert config[group]["periodic"] is periodic
    assert config[group]["arch"] in ("dcae", "vit", "unet")
    if group == "surrogate":
        assert config[group]["spatial"] == 3
        assert config[group]["channels"] == 64


OURS = {
    "task": "diffusion",
    "ae_run": None,
    "dataset": {**DATASET, "augment": [], "scalars": ["rho0", "Z", "T0"], "log_scalars": ["rho0"]},
    "trajectory": {
        "length": 5,
        "stride": 4,
        "context": {"law": "poisson_mod", "rate": 1.0, "atleast": 1, "rho": 1.0},
    },
    "denoiser": {
        "arch": "vit",
        "periodic": [False, True, True],
        "window_size": None,
        "checkpointing": "none",
        "label_dropout": 0.1,
        "schedule": {"name": "log_logit"},
    },
}


def test_our_models_are_told_to_lola() -> None:
    exported = export_config(OURS)
    assert exported["denoiser"] == {
        "arch": "vit",
        "window_size": None,
        "checkpointing": False,
        "schedule": {"name": "log_logit"},
    }
    assert exported["dataset"]["augment"] == ["log_scalars"]
    assert exported["trajectory"]["context"] == {"lmbda": 1.0, "rho": 1.0, "atleast": 1}


@pytest.mark.parametrize(
    ("network", "dataset", "message"),
    [
        ({"window_size": 3}, {}, "windows wrap on every axis"),
        ({"arch": "unet"}, {}, "convolutions wrap on every axis or none"),
        ({"value_residual": True}, {}, "no such option"),
        ({"schedule": {"name": "rectified"}}, {}, "no such schedule"),
        ({}, {"log_scalars": ["rho0", "T0"]}, "log_scalars"),
    ],
)
def test_what_lola_would_compute_differently_is_refused(
    network: dict, dataset: dict, message: str
) -> None:
    config = {
        **OURS,
        "denoiser": {**OURS["denoiser"], **network},
        "dataset": {**OURS["dataset"], **dataset},
    }
    with pytest.raises(ValueError, match=message):
        export_config(config)


# The published runs


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory):
    """Converts a published run and gives its model, its inputs and its outputs."""
    folder = tmp_path_factory.mktemp("published")

    def convert(name: str) -> tuple[Any, dict[str, Tensor]]:
        if not (folder / name).exists():
            main(["--from", "lola", str(FOLDER / name), str(folder / name)])
        return load_model(folder / name), load_run(name)[2]

    return convert


@needs_runs
@torch.no_grad()
def test_published_autoencoder(published) -> None:
    model, io = published("ae_euler_dcae_f4c8")
    y, z = model(io["x"])
    assert_relative(z, io["z"])
    assert_relative(y, io["y"])
    assert_relative(model.encode(io["x"]), io["z"])
    assert_relative(model.decode(io["z"]), io["y"])

    batch = SimpleNamespace(
        x=io["x"].unsqueeze(2), seed=torch.arange(2), weight=torch.ones(2), label=None
    )
    for name, losses, weights in [
        ("loss_vrmse", ["vrmse"], [1.0]),
        ("loss_mae_similarity", ["mae", "similarity"], [1.0, 0.1]),
    ]:
        loss, _ = AutoencoderObjective(model, losses, weights).eval()(batch)
        assert_relative(loss, io[name])


@needs_runs
@torch.no_grad()
def test_published_denoiser_and_sampling(published) -> None:
    model, io = published("dm_rb_f4c8_vit")
    q = model(io["x_t"], io["t"], mask=io["mask"], label=io["label"])
    assert_relative(q.mean, io["mean"])
    assert_relative(q.var, io["var"])

    x_obs = torch.zeros_like(io["x1"])
    x_obs[:, :, :1] = io["x_obs"]
    mask = (torch.arange(5) < 1).view(1, 1, 5, 1, 1)
    options = {"label": io["label"], "sampler": "ab", "steps": 8}
    assert_relative(sample(model, mask, x_obs, x_1=io["x1"], **options), io["x0"])


@needs_runs
@torch.no_grad()
@pytest.mark.parametrize("context", [1, 2])
def test_published_surrogate_and_rollout(context: int, published) -> None:
    model, io = published("sm_euler_pixel_vit")
    assert_relative(model(io["x"], io["mask"], io["label"]), io["y"])

    x = rollout(
        lambda mask, x_obs, i: model(x_obs, mask, io["label"][:1]),
        io["traj"],
        window=5,
        frames=9,
        context=context,
        overlap=context,
    )
    assert_relative(x, io[f"rollout_{context}_{context}"])


@needs_runs
@pytest.mark.parametrize("name", ["ae_euler_dcae_f4c8", "dm_rb_f4c8_vit", "sm_euler_pixel_vit"])
def test_published_runs_return_bit_for_bit(name: str, published, tmp_path: Path) -> None:
    published(name)
    main(["--from", "lola", str(FOLDER / name), str(tmp_path / "ours")])
    main(["--to", "lola", str(tmp_path / "ours"), str(tmp_path / "back")])
    assert same_state(FOLDER / name, tmp_path / "back")
    assert resolved(FOLDER / name) == resolved(tmp_path / "back")
