"""Trained models and emulators from converted folders and runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.build.networks import build_model
from lola_ds.build.physics import label_logs, make_standardize
from lola_ds.config import load_config
from lola_ds.emulate.emulator import Emulator
from lola_ds.models.lola import STATE, read_state
from lola_ds.train.checkpoint.export import find_checkpoint, model_weights, read_weights
from lola_ds.train.checkpoint.format import explain_mismatch

__all__ = [
    "AUTOENCODER",
    "WEIGHTS",
    "autoencoder_folder",
    "check_weights",
    "load_emulator",
    "load_model",
    "load_weights_of",
]

WEIGHTS = "model.safetensors"
AUTOENCODER = "autoencoder"


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Loads a trained network for inference: eval mode, float32.

    Arguments:
        path: A converted folder (`model.safetensors`, `config.yaml`) or a run folder, of which the
            averaged weights (EMA) of the newest checkpoint are taken.
        device: The device of the network.

    Returns:
        An `Autoencoder`, `Surrogate` or `Denoiser`.

    Raises:
        FileNotFoundError: The folder is neither.
        ValueError: The weights do not fit the configuration.
    """
    path = Path(path)
    model, state = build_model(load_config(path / "config.yaml")), load_weights_of(path)
    check_weights(str(path), state, model)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


def load_weights_of(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a model by name.

    Arguments:
        path: A converted folder, a run of lola, or a run or checkpoint of ours, of which the
            principal average is taken.

    Raises:
        FileNotFoundError: The folder is none of them.
        ValueError: A file cannot be read.
    """
    if (path / WEIGHTS).is_file():
        return dict(read_weights(path / WEIGHTS))
    if (path / STATE).is_file():
        return read_state(path)
    return dict(model_weights(find_checkpoint(path)))


def check_weights(source: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Checks that names and shapes of tensors are the model's.

    Arguments:
        source: The origin of the tensors, for messages.
        state: The tensors by name.
        model: The model.

    Raises:
        CheckpointError: A name or a shape differs.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    explain_mismatch(source, {n: tuple(t.shape) for n, t in state.items()}, expected)


def load_emulator(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
) -> Emulator:
    """Loads an emulator with its autoencoder and field statistics: physical units in and out.

    Arguments:
        path: A converted folder or a run folder. Latent emulators take the autoencoder in
            `autoencoder/`, or else that of the run they were trained with.
        device: The device of the emulator.
        precision: `fp32` or `bf16`; see `Emulator`.
        compiled: Whether to compile the networks; see `Emulator`.

    Raises:
        FileNotFoundError: A part is missing.
        ValueError: The folder holds an autoencoder only, or the precision is unknown.
    """
    path = Path(path)
    config = load_config(path / "config.yaml")
    if config["task"] == "autoencoder":
        raise ValueError(f"{path} is an autoencoder, not an emulator; use load_model")
    autoencoder = None
    if config["ae_run"] is not None:
        autoencoder = load_model(autoencoder_folder(path, config), device)
    return Emulator(
        load_model(path, device),
        autoencoder=autoencoder,
        standardize=make_standardize(config["dataset"]),
        trajectory=config["trajectory"],
        label_log=label_logs(config["dataset"]),
        device=device,
        spatial=len(config["dataset"]["dimensions"]),
        fields=config["dataset"]["fields"],
        axes=config["dataset"]["dimensions"],
        precision=precision,
        compiled=compiled,
    )


def autoencoder_folder(path: Path, config: dict[str, Any]) -> Path:
    """Returns the folder of an emulator's autoencoder: its own, or the run it was trained with.

    Arguments:
        path: The folder of the emulator.
        config: The configuration of the emulator.

    Raises:
        FileNotFoundError: There is neither.
    """
    for folder in (path / AUTOENCODER, Path(config["ae_run"])):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the autoencoder of {path} is neither in {path / AUTOENCODER} nor at {config['ae_run']}"
    )
