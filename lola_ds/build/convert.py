"""Conversion of trained models: from checkpoints and runs of lola, to plain weights and to lola."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lola_ds.atomic_io import replace_folder
from lola_ds.build.load import AUTOENCODER, WEIGHTS, autoencoder_folder, check_weights
from lola_ds.build.networks import build_model
from lola_ds.config import find_dataset, load_config, save_config
from lola_ds.models.lola import (
    ORIGINAL,
    export_config,
    import_config,
    read_state,
    write_state,
)
from lola_ds.train.checkpoint.export import (
    find_checkpoint,
    model_weights,
    read_weights,
    select_weights,
    write_weights,
)
from lola_ds.train.checkpoint.tensor_file import same_bits

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        origin: What was converted, in words.
        verified: The number of tensors compared, for the model and for its autoencoder.
    """

    origin: str
    verified: list[int]


@dataclass(frozen=True)
class _Model:
    """The contents of a folder.

    Attributes:
        config: The configuration of lola_ds.
        state: The tensors by name, read one at a time where the file allows it.
        autoencoder: The folder of the autoencoder of a latent emulator.
        origin: A description in words.
    """

    config: dict[str, Any]
    state: Mapping[str, Tensor]
    autoencoder: Path | None
    origin: str


def convert(
    source: Path,
    out: Path,
    which: str | None = None,
    from_lola: bool = False,
    to_lola: bool = False,
    verify: bool = False,
) -> Conversion:
    """Converts a model and the autoencoder that it belongs to. Writes all of `out`, or nothing.

    Arguments:
        source: A run, one of its checkpoints, or a converted folder.
        out: The folder to write, which may hold an earlier conversion.
        which: The weights to take from a checkpoint; see `select_weights`. By default, the
            principal average, with which latent emulators see their autoencoder.
        from_lola: Whether `source` is a run of the published code.
        to_lola: Whether to write a run of the published code.
        verify: Whether to read `out` back and compare every bit.

    Raises:
        FileNotFoundError: A part of the model is missing.
        FileExistsError: `out` holds something else.
        ValueError: The model cannot be read, or is not what was written.
    """
    write = _write_lola if to_lola else _write
    verified: list[int] = []

    def convert_folder(model: _Model, folder: Path) -> None:
        folder.mkdir(parents=True)
        write(model, folder)
        if verify:
            verified.append(_verify(model, folder))
        if model.autoencoder is not None:
            read = _read_lola if from_lola else _read
            convert_folder(read(model.autoencoder), folder / AUTOENCODER)

    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model = _read_lola(source) if from_lola else _read(source, which)
        convert_folder(model, staging)
        _replace(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Conversion(model.origin, verified)


def _read(path: Path, which: str | None = None) -> _Model:
    """Reads a run, one of its checkpoints, or a converted folder."""
    if (path / WEIGHTS).is_file():
        if which is not None:
            raise ValueError(f"--ema {which}: {path} holds one set of weights; leave --ema out")
        run, state, moment = path, read_weights(path / WEIGHTS), "converted"
    else:
        reader = find_checkpoint(path)
        selection = select_weights(reader, which or "ema")
        run, state = reader.folder.parent.parent, model_weights(reader, selection)
        moment = f"at step {reader.state['step']}, {selection.name}"
    config = load_config(run / "config.yaml")
    autoencoder = None
    if config["ae_run"] is not None:
        try:
            autoencoder = autoencoder_folder(run, config)
        except FileNotFoundError:
            if ORIGINAL not in config:  # a run of lola may have been imported without
                raise
    return _Model(config, state, autoencoder, f"{config['task']} {moment}")


def _read_lola(path: Path) -> _Model:
    """Reads a run of the published code, strictly."""
    original, state = load_config(path / "config.yaml"), read_state(path)
    places = [path / AUTOENCODER, Path(original.get("ae_run") or path / AUTOENCODER).expanduser()]
    autoencoder = next((place for place in places if (place / "config.yaml").is_file()), None)
    encoding = {} if autoencoder is None else load_config(autoencoder / "config.yaml").get("ae", {})
    dataset = find_dataset(original.get("dataset", {}).get("physics", []))
    config = import_config(
        original,
        state,
        scalars=None if dataset is None else dataset["scalars"],
        latent_channels=encoding.get("lat_channels"),
    )
    with torch.device("meta"):
        check_weights(str(path), state, build_model(config))
    origin = f"{config['task']} of lola"
    if config["task"] == "autoencoder":
        return _Model(config, state, None, origin)
    group = config["surrogate" if config["task"] == "surrogate" else "denoiser"]
    if autoencoder is not None or group["channels"] != len(config["dataset"]["fields"]):
        config["ae_run"] = str(places[-1] if autoencoder is None else autoencoder)
        origin += ", without its autoencoder, which is not there" * (autoencoder is None)
    return _Model(config, state, autoencoder, origin)


def _write(model: _Model, out: Path) -> None:
    """Writes a converted folder."""
    write_weights(model.state, out / WEIGHTS)
    save_config(model.config, out / "config.yaml")


def _verify(model: _Model, out: Path) -> int:
    """Reads a folder back and compares it with the model; returns the number of tensors.

    Raises:
        ValueError: A tensor differs, is missing, or is not of the model.
    """
    plain = (out / WEIGHTS).is_file()
    written = _LibraryTensors(out / WEIGHTS) if plain else read_state(out)
    if differing := set(written) ^ set(model.state):
        raise ValueError(f"{out}: {min(differing)} was not written, or not read")
    for name, tensor in model.state.items():
        if not same_bits(tensor, written[name]):
            raise ValueError(f"{out}: {name} differs from what it was written from")
    return len(written)


class _LibraryTensors(Mapping[str, Tensor]):
    """The tensors of a file, read by the `safetensors` library, which did not write them.

    The file is mapped anew for each tensor, so that memory holds one at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with safe_open(self.path, framework="pt") as file:
            return iter(list(file.keys()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _write_lola(model: _Model, out: Path) -> None:
    """Writes a run of the published code."""
    config = export_config(model.config)
    write_state(model.state, out)
    save_config(config, out / "config.yaml")


def _replace(staging: Path, out: Path) -> None:
    """Puts the finished folder in place of an earlier conversion, and of nothing else."""
    if out.exists() and not (out / "config.yaml").is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists and is not a converted model; choose another OUT")
    replace_folder(staging, out)
