"""Trained models and emulators from the folders that hold them."""

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

WEIGHTS = "model.safetensors"
AUTOENCODER = "autoencoder"


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Loads a trained network for inference: eval mode, float32.

    Arguments:
        path: a converted folder (`model.safetensors`, `config.yaml`) or a run folder, whose newest
            checkpoint's averaged weights (EMA) are taken.
        device: where to put it.

    Returns:
        An `Autoencoder`, `Surrogate` or `Denoiser`.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: the weights do not fit the configuration beside them.
    """
    path = Path(path)
    model, state = build_model(load_config(path / "config.yaml")), load_weights_of(path)
    check_weights(str(path), state, model)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


def load_weights_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a model by name: of a converted folder, a run of lola, or a run's average.

    Raises:
        FileNotFoundError: the folder is none of them.
        ValueError: a file cannot be read.
    """
    if (path / WEIGHTS).is_file():
        return dict(read_weights(path / WEIGHTS))
    if (path / STATE).is_file():
        return read_state(path)
    return dict(model_weights(find_checkpoint(path)))


def check_weights(source: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuses tensors whose names or shapes are not the model's.

    Raises:
        CheckpointError: gives the first difference of each kind.
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
        path: a converted folder; emulators of latents hold their autoencoder in `autoencoder/`.
        device: where to put it.
        precision: `bf16` for speed; see `Emulator`.
        compiled: true for speed, once it has compiled; see `Emulator`.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: the folder holds an autoencoder only, or there is no such precision.
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
    """The autoencoder of an emulator: in its own folder, else the run it was trained with.

    Raises:
        FileNotFoundError: neither exists.
    """
    for folder in (path / AUTOENCODER, Path(config["ae_run"])):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the autoencoder of {path} is neither in {path / AUTOENCODER} nor at {config['ae_run']}"
    )
