"""Import and export of runs of the published code: folders with `config.yaml` and `state.pth`.

Parameters have the same names in both codes, so that weights are copied bit for bit; only the
configuration differs. Some behaviour of lola is fixed in its code, but an option here:

- windows of local attention wrap on every axis, time included (`periodic: true`);
- convolutions of autoencoders wrap only where the run's own `ae.periodic` says so, those of UNets
  where `periodic` does, on every axis then, whatever the boundaries of the data;
- of the scalars that were meant to enter the label by their logarithm, T0 enters as it is: its name
  was compared in lower case (`dataset.log_scalars` leaves it out);
- context masks follow `poisson_mod`.

A state is read as tensors only: no code in it can run.

References:
    | Lost in Latent Space: An Empirical Study of Latent Diffusion Models for Physics Emulation
    | (Rozet et al., 2025)
    | https://arxiv.org/abs/2507.02608
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["ORIGINAL", "STATE", "export_config", "import_config", "read_state", "write_state"]

STATE = "state.pth"
ORIGINAL = "lola"
"""The key under which an imported configuration keeps the run's own, for the way back."""

_GROUPS = {"ae": "autoencoder", "surrogate": "surrogate", "denoiser": "diffusion"}
_LOGGED = ("rayleigh", "prandtl", "rho0")
_CONTEXT = {"lmbda": 1.0, "rho": 0.66, "atleast": 1}  # where a run does not say
_OURS = ("label_dropout", "value_residual")  # options of networks that lola does not have
_DATASET = "name physics include_filters dimensions periodic fields transform stats augment".split()


def read_state(folder: Path) -> dict[str, Tensor]:
    """Reads the tensors of a run's `state.pth`, by name, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds anything but named tensors; nothing in it has been executed.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a run of lola")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than tensors: {reason}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is refused: it is not a flat dictionary of tensors")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def write_state(state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes `state.pth`, from which `read_state` reads the same bits."""
    torch.save(dict(state), folder / STATE)


def import_config(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    scalars: Sequence[str] | None,
    latent_channels: int | None = None,
) -> dict[str, Any]:
    """Translates the configuration of a run of lola.

    Arguments:
        config: The run's configuration.
        state: Its tensors, which tell what the configurations of older runs leave out.
        scalars: The names of the dataset's scalars in the order of the label; None if unknown.
        latent_channels: The number of latent channels of the run's autoencoder, for an emulator of
            latents.

    Returns:
        A configuration whose `ae_run` is None, for the caller to fill in.

    Raises:
        ValueError: The configuration is not of lola or says what has no counterpart here.
    """
    groups = [group for group in ("denoiser", "surrogate", "ae") if group in config]
    if not groups or "dataset" not in config:
        raise ValueError(
            "the configuration is not of lola: it should hold `dataset` and one of "
            f"{', '.join(_GROUPS)}; it holds {', '.join(map(str, config))}"
        )
    group = groups[0]
    dataset = _import_dataset(config["dataset"], scalars)
    network = _import_network(group, config[group], dataset, state, latent_channels)
    imported = {
        "task": _GROUPS[group],
        "run": None,
        "data": None,
        "ae_run": None,
        "precision": "fp32",
        "dataset": dataset,
        group: network,
    }
    if group != "ae":
        imported["trajectory"] = _import_trajectory(config.get("trajectory", {}))
    return {**imported, ORIGINAL: dict(config)}


def _import_dataset(dataset: Mapping[str, Any], scalars: Sequence[str] | None) -> dict[str, Any]:
    augment = list(dataset.get("augment", []))
    logged: list[str] = []
    if "log_scalars" in augment:
        augment.remove("log_scalars")
        if scalars is None:
            raise ValueError(
                f"dataset.physics={dataset['physics']} is not among configs/dataset, and "
                "dataset.augment takes logarithms of its scalars; add a file there that names them"
            )
        logged = [name for name in scalars if name.lower() in _LOGGED]
    known = {key: dataset[key] for key in _DATASET if key in dataset}
    return {**known, "augment": augment, "scalars": list(scalars or ()), "log_scalars": logged}


def _import_network(
    group: str,
    given: Mapping[str, Any],
    dataset: Mapping[str, Any],
    state: Mapping[str, Tensor],
    latent_channels: int | None,
) -> dict[str, Any]:
    network = {key: value for key, value in given.items() if key != "precondition"}
    for key in ("encoder_only", "decoder_only"):
        if network.pop(key, None):
            raise ValueError(
                f"{group}.{key} is not supported: encoder and decoder mirror each other"
            )
    axes, fields = len(dataset["dimensions"]), len(dataset["fields"])
    arch = network.get("arch") or ("dcae" if group == "ae" else "vit")
    network["arch"] = "vit" if arch == "dit" else arch
    network["periodic"] = network["arch"] == "vit" or bool(network.get("periodic", False))
    if group == "ae":
        return {"pix_channels": fields, "spatial": axes, **network}
    label = state.get(f"{'backbone.' * (group == 'denoiser')}label_embedding.0.weight")
    guessed = {
        "channels": fields if latent_channels is None else latent_channels,
        "label_features": 0 if label is None else label.shape[1],
        "spatial": axes + 1,
    }
    if group == "denoiser":
        guessed["masked"] = True
    return {**guessed, **network}


def _import_trajectory(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    context = {**_CONTEXT, **trajectory.get("context", {})}
    return {
        "length": trajectory.get("length", 5),
        "stride": trajectory.get("stride", 4),
        "context": {
            "law": "poisson_mod",
            "rate": context["lmbda"],
            "atleast": max(1, context["atleast"]),
            "rho": context["rho"],
        },
    }


def export_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a configuration to lola's: that of the run, if it was imported.

    Raises:
        ValueError: lola has no option for what the model does.
    """
    if ORIGINAL in config:
        return dict(config[ORIGINAL])
    group = next(group for group, task in _GROUPS.items() if task == config["task"])
    dataset, network = config["dataset"], dict(config[group])
    _check_exportable(group, network, dataset)
    for key in (*_OURS, *(["loss"] if group == "surrogate" else ())):
        network.pop(key, None)
    checkpointing = network.get("checkpointing")
    network["checkpointing"] = checkpointing not in (None, False, "none")
    flags = _flags(network.pop("periodic", False))
    if network.get("arch") != "vit" and any(flags):
        network["periodic"] = True
    known = {key: dataset[key] for key in _DATASET if key in dataset}
    known["periodic"] = all(_flags(dataset["periodic"]))
    if dataset["log_scalars"]:
        known["augment"] = ["log_scalars", *known.get("augment", [])]
    exported = {"dataset": known, group: network}
    if group != "ae":
        context = config["trajectory"]["context"]
        exported["trajectory"] = {
            "length": config["trajectory"]["length"],
            "stride": config["trajectory"]["stride"],
            "context": {
                "lmbda": context["rate"],
                "rho": context["rho"],
                "atleast": context["atleast"],
            },
        }
        exported["ae_run"] = config["ae_run"]
    return exported


def _check_exportable(group: str, network: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Refuses what lola would load and then compute differently."""
    flags = _flags(network.get("periodic", False))
    vit = network.get("arch") == "vit"
    logged = set(dataset["log_scalars"])
    expected = {name for name in dataset["scalars"] if name.lower() in _LOGGED}
    patch, unpatch = network.get("patch_size", 1), network.get("unpatch_size", None)
    faults = {
        f"dataset.log_scalars={sorted(logged)}: lola takes those of {sorted(expected)}, or none": (
            logged and logged != expected
        ),
        f"{group}.window_size={network.get('window_size')} with {group}.periodic={list(flags)}: "
        "lola's windows wrap on every axis": vit and network.get("window_size") and not all(flags),
        f"{group}.periodic={list(flags)}: lola's convolutions wrap on every axis or none": (
            not vit and any(flags) and not all(flags)
        ),
        f"{group}.value_residual=true: lola has no such option": network.get("value_residual"),
        f"ae.unpatch_size={unpatch}: lola's output layer is sized by ae.patch_size={patch}": (
            group == "ae" and vit and (unpatch or 1) != patch
        ),
        "denoiser.schedule.name=rectified: lola has no such schedule": (
            group == "denoiser" and network["schedule"]["name"] == "rectified"
        ),
    }
    for fault, holds in faults.items():
        if holds:
            raise ValueError(f"the model cannot be written for lola: {fault}")


def _flags(periodic: bool | Sequence[bool] | None) -> tuple[bool, ...]:
    if periodic is None or isinstance(periodic, bool):
        return (bool(periodic),)
    return tuple(bool(flag) for flag in periodic)
