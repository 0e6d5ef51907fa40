"""Every configuration and preset composes, builds with its exact size, and learns when scaled down.

Full-size networks are built on the meta device; scaled-down ones, of the same structure, run their
objective forward and backward on a small grid.
"""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lola_ds.build import build_model, complete_network
from lola_ds.build.objective import build_objective
from lola_ds.config import TASKS, compose, config_folder
from lola_ds.data import Batch

SYSTEMS = {
    "euler": (5, [64, 32], 5),
    "rayleigh_benard": (4, [64, 32], 6),
    "gravity_cooling": (6, [16, 8, 8], 9),
}
"""Fields, a small grid and label features of the systems: scalars, then two codes for each axis."""

SPACES = {"c64": 64, "c16": 16, "c4": 4}
"""Latent channels of the compressions."""

ROWS = [
    *itertools.product(SYSTEMS, SPACES, TASKS),
    *itertools.product(("euler", "rayleigh_benard"), ["pixel"], ["surrogate", "diffusion"]),
]
"""The models of the paper: system, space and task."""

NAMES = {
    group: sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    for group in ("ae", "surrogate", "denoiser", "ae/loss", "denoiser/loss", "denoiser/schedule")
}


@functools.cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return compose([*words, "run=RUN", "data=DATA", "precision=fp32"])


def composed(*words: str) -> dict[str, Any]:
    """The configuration that the words of a command compose."""
    return copy.deepcopy(_composed(words))


def count(config: dict[str, Any], shape: tuple[int, ...], labels: int) -> int:
    """The number of parameters of the full network, built without memory for frames `shape`."""
    with torch.device("meta"):
        model = build_model(complete_network(config, shape, labels))
    return sum(p.numel() for p in model.parameters())


def shrink(network: dict[str, Any]) -> dict[str, Any]:
    """The same structure with one block per level and few channels."""
    small: dict[str, Any] = {"emb_features": 8} if "emb_features" in network else {}
    if isinstance(network["hid_channels"], list):
        levels = len(network["hid_channels"])
        small |= {"hid_channels": [8] * levels, "hid_blocks": [1] * levels}
    else:
        small |= {"hid_channels": 16, "hid_blocks": 2, "attention_heads": 2}
    return network | small


def learn(config: dict[str, Any], shape: tuple[int, ...], labels: int) -> nn.Module:
    """Runs the scaled-down objective forward and backward; every parameter must have a gradient."""
    torch.manual_seed(0)
    group = TASKS[config["task"]]
    config = complete_network(config | {group: shrink(config[group])}, shape, labels)
    objective = build_objective(config, build_model(config))
    length = 1 if group == "ae" else config["trajectory"]["length"]
    x, label = torch.randn(2, shape[0], length, *shape[1:]), torch.randn(2, labels)
    loss, _ = objective(Batch(x, label, torch.arange(2), torch.ones(2), torch.arange(2)))
    assert loss.isfinite()
    loss.backward()
    for name, p in objective.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return objective


def expected_size(system: str, space: str, task: str) -> int:
    """Sizes of the published models with 64 channels, and what other channels and axes change."""
    fields, grid, labels = SYSTEMS[system]
    axes, channels = len(grid), SPACES.get(space, fields)
    missing = 64 - channels
    if task == "autoencoder":
        published = {"euler": 313_098_629, "rayleigh_benard": 313_097_476}
        kernel = 3**axes * 1024  # one more channel: a kernel into it, its bias, a kernel from it
        return published.get(system, 741_019_014) - missing * (2 * kernel + 1)
    if space == "pixel":
        size, missing, tokens, H = 860_810_240, 5 - channels, 256, 2048
    else:
        size, tokens, H = 222_756_672, 1, 1024
    size += (labels - 5) * 256  # the label's embedding
    size += (axes - 2) * (H * H + 16 * H // 2)  # positional embedding and rotary frequencies
    if task == "diffusion":
        size += 2 * (256 * 256 + 256)  # the time's embedding
    return size - missing * tokens * (3 * H + 1)  # the input, its mask and the output


@pytest.mark.parametrize(
    ("system", "space", "task"),
    [pytest.param(*row, marks=pytest.mark.slow if "c16" in row else ()) for row in ROWS],
)
def test_presets(system: str, space: str, task: str) -> None:
    preset = f"experiment=[{system},{space},{task}]"
    config = composed(preset)
    fields, grid, labels = SYSTEMS[system]
    assert config["task"] == task
    latent = task != "autoencoder" and space != "pixel"
    channels = config["ae"]["lat_channels"] if latent else fields
    assert count(config, (channels, *grid), labels) == expected_size(system, space, task)

    stride = 2 ** (len(config["ae"]["hid_channels"]) - 1) if latent else 1
    learn(config, (channels, *(max(2, size // stride) for size in grid)), labels)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_flavours(system: str, task: str) -> None:
    """What differs between the paper and its published code, wherever the words stand."""
    words = [f"experiment=[{system},c64,{task}]", "variant=lola"]
    paper, lola = composed(words[0]), composed(*reversed(words))
    context = paper["trajectory"]["context"]
    assert context == {"law": "poisson_truncated", "rate": 2.0, "atleast": 1, "rho": 1.0}
    assert paper["trajectory"]["stride"] == (1 if system == "rayleigh_benard" else 4)
    assert paper["ae"]["loss"]["losses"] == ["vmse"]
    assert paper["denoiser"]["schedule"]["name"] == "rectified"

    context = lola["trajectory"]["context"]
    assert context == {"law": "poisson_mod", "rate": 1.0, "atleast": 1, "rho": 0.66}
    assert lola["trajectory"]["stride"] == 4
    assert lola["ae"]["loss"]["losses"] == ["vrmse"]
    assert lola["denoiser"]["schedule"]["name"] == "log_logit"
    differ = {"trajectory", "ae", "denoiser"}
    assert {k: v for k, v in paper.items() if k not in differ} == {
        k: v for k, v in lola.items() if k not in differ
    }
    fields, grid, labels = SYSTEMS[system]
    if task == "autoencoder":
        learn(lola, (fields, *grid), labels)
    else:
        learn(lola, (64, *[2] * len(grid)), labels)


@pytest.mark.parametrize(
    "words", [("euler", "surrogate", "pixel"), ("pixel", "euler", "surrogate")]
)
def test_presets_compose_in_any_order(words: tuple[str, ...]) -> None:
    config = composed(f"experiment=[{','.join(words)}]")
    assert config["surrogate"]["name"] == "vit_pixel"
    assert config["dataset"]["name"] == "euler_all"
    assert config["train"]["batch_size"] == 256


FIELDS = {"dcae_3d_f8c64_large": ("gravity_cooling", (6, 16, 8, 8), 9)}
"""Systems of the autoencoders that are not for the default one."""

SIZES = {
    "dcae_f32c64_large": 313_098_629,
    "dcae_f32c64_small": 78_581_989,
    "dcae_3d_f8c64_large": 741_019_014,
}


@pytest.mark.parametrize("name", NAMES["ae"])
def test_autoencoders(name: str) -> None:
    dataset, shape, labels = FIELDS.get(name, ("euler_all", (5, 64, 32), 5))
    config = composed("task=autoencoder", f"dataset={dataset}", f"ae={name}")
    assert config["ae"]["name"] == name
    if name in SIZES:
        assert count(config, shape, labels) == SIZES[name]
    objective = learn(config, shape, labels)
    factor = 16 if "f16" in name else 8 if "f8" in name else 32
    z = objective.model.encode(torch.randn(1, *shape))
    assert z.shape == (1, config["ae"]["lat_channels"], *(s // factor for s in shape[1:]))


EMULATORS = {
    ("denoiser", "vit_small"): 60_951_872,
    ("denoiser", "vit_large"): 222_888_256,
    ("denoiser", "unet_deep"): 455_669_120,
    ("surrogate", "vit_small"): 60_820_288,
    ("surrogate", "vit_large"): 222_756_672,
    ("surrogate", "vit_pixel"): 860_810_240,
    ("surrogate", "unet_deep"): 455_537_536,
}


@pytest.mark.parametrize(
    ("group", "name"), [(g, name) for g in ("surrogate", "denoiser") for name in NAMES[g]]
)
def test_emulators(group: str, name: str) -> None:
    task = "surrogate" if group == "surrogate" else "diffusion"
    config = composed(f"task={task}", f"{group}={name}", "dataset=euler_all")
    assert config[group]["name"] == name
    shape = (5, 32, 16) if name == "vit_pixel" else (64, 4, 4)
    if (group, name) in EMULATORS:
        assert count(config, shape, 5) == EMULATORS[group, name]
    learn(config, shape, 5)


@pytest.mark.parametrize("name", NAMES["ae/loss"])
def test_reconstruction_losses(name: str) -> None:
    learn(composed("task=autoencoder", f"ae/loss={name}"), (5, 16, 16), 5)


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("loss", "schedule") for n in NAMES[f"denoiser/{g}"]]
)
def test_denoising_losses_and_schedules(group: str, name: str) -> None:
    learn(composed("task=diffusion", f"denoiser/{group}={name}"), (16, 4, 4), 5)


@pytest.mark.parametrize("name", ["mse", "vrmse"])
def test_surrogates_minimise_their_configured_loss(name: str) -> None:
    config = composed("task=surrogate", "surrogate=vit_tiny", f"surrogate.loss={name}")
    config = complete_network(config, (16, 4, 4), 5)
    assert build_objective(config, build_model(config)).loss == name


def test_unknown_losses_of_surrogates_are_refused() -> None:
    config = composed("task=surrogate", "surrogate=vit_tiny", "surrogate.loss=l2")
    config = complete_network(config, (16, 4, 4), 5)
    with pytest.raises(ValueError, match=r"surrogate\.loss='l2' is unknown; known: "):
        build_objective(config, build_model(config))


@pytest.mark.parametrize("task", TASKS)
def test_axes_wrap_as_the_dataset_s_do(task: str) -> None:
    """Axes of space as the dataset says, time never; `periodic` of the network overrules both."""
    group = TASKS[task]
    time = [] if group == "ae" else [False]
    config = composed(f"task={task}", "dataset=rayleigh_benard")
    assert complete_network(config, (4, 8, 8), 6)[group]["periodic"] == [*time, True, False]
    config = composed(f"task={task}", "dataset=euler_periodic", f"{group}.periodic=true")
    assert complete_network(config, (5, 8, 8), 5)[group]["periodic"] is True
    config[group].pop("periodic")
    assert complete_network(config, (5, 8, 8), 5)[group]["periodic"] == [*time, True, True]


@pytest.mark.parametrize("periodic", ["[true]", "sometimes", "[true,1]"])
def test_periodic_flags_are_checked(periodic: str) -> None:
    with pytest.raises(ValueError, match=r"dataset\.periodic=.*dimensions=\['x', 'y'\]"):
        composed("task=autoencoder", f"dataset.periodic={periodic}")


def test_configurations_are_all_tested() -> None:
    """A file in a group that no test above composes would never be built."""
    folder = config_folder() / "experiment"
    known = {*SYSTEMS, *SPACES, "pixel", *TASKS, "paper", "emulator"}
    demos = {path.stem for path in folder.glob("demo_*.yaml")}
    assert {path.stem for path in Path(folder).glob("*.yaml")} == known | demos
