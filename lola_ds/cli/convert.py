"""`lola-ds convert`: checkpoint -> plain weights; runs of the published code in and out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lola_ds.cli.common import fail, make_parser, parse_arguments

HELP = """Converts a checkpoint to plain weights: OUT/model.safetensors and OUT/config.yaml.

The folder is all that `load_model`, `load_emulator`, `lola-ds encode` and `lola-ds eval` need;
emulators of latents carry their autoencoder along in OUT/autoencoder.

--ema says which weights: `ema` (the default) is the first average of the configuration, `none` the
weights as they were optimised, a number the average with this ema.decay or sigma_rel. A sigma_rel
of which no average was kept is made of the power-law averages that were (docs/checkpoints.md).
--verify reads OUT back and compares every bit.

With --from lola, RUN is a run of the published code: config.yaml and state.pth, and for emulators
of latents their autoencoder's run in RUN/autoencoder (a folder or a link) or where `ae_run` says.
With --to lola, such a folder is written; a run that was imported returns bit for bit.

examples:
  lola-ds convert runs/ae weights/ae                    the newest checkpoint's averaged weights
  lola-ds convert runs/ae/best weights/ae --verify      those of the best checkpoint
  lola-ds convert runs/ae/checkpoints/step_00004000 weights/ae_4000 --ema none
  lola-ds convert runs/dm weights/dm --ema 0.08
  lola-ds convert --from lola lola/runs/dm/abc weights/dm
  lola-ds convert --to lola weights/dm lola/runs/dm/abc"""


@dataclass(frozen=True)
class Model:
    """What a folder holds.

    Attributes:
        config: its configuration, ours.
        state: its tensors by name, read when asked for if they come from a file of ours.
        autoencoder: the folder of the autoencoder of an emulator of latents.
        origin: what it is, for people.
    """

    config: dict[str, Any]
    state: Mapping[str, Any]
    autoencoder: Path | None
    origin: str


def main(argv: Sequence[str]) -> None:
    """Writes OUT whole or not at all."""
    parser = make_parser("convert", HELP)
    parser.add_argument("--ema", metavar="ema|none|NUMBER", help="which weights (default: ema)")
    parser.add_argument("--verify", action="store_true", help="read OUT back, compare every bit")
    parser.add_argument("--from", dest="source", choices=("lola",), help="the kind of RUN")
    parser.add_argument("--to", dest="target", choices=("lola",), help="the kind of OUT")
    args, words = parse_arguments(parser, argv)
    if len(words) != 2:
        fail("expected RUN|CHECKPOINT and OUT (see lola-ds convert --help)")
    source, out = Path(words[0]), Path(words[1])
    if args.ema is not None and args.source:
        fail(
            f"--ema {args.ema} with --from lola: its runs hold one set of weights; leave --ema out"
        )

    def read(path: Path) -> Model:
        # The autoencoder of an emulator is what it was trained with: the average.
        which = args.ema if path == source else None
        return _read_lola(path) if args.source else _read(path, which)

    def write(model: Model, folder: Path) -> None:
        (_write_lola if args.target else _write)(model, folder)
        if args.verify:
            _verify(model, folder)

    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        origin = _convert(source, staging, read, write)
        _replace(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    print(f"{out}: {origin}")


def _convert(
    source: Path, out: Path, read: Callable[[Path], Model], write: Callable[[Model, Path], None]
) -> str:
    """Converts a folder and the autoencoder it belongs to; returns what it is."""
    from lola_ds.build import AUTOENCODER

    model = read(source)
    out.mkdir(parents=True)
    write(model, out)
    if model.autoencoder is not None:
        _convert(model.autoencoder, out / AUTOENCODER, read, write)
    return model.origin


def _read(path: Path, which: str | None) -> Model:
    """Reads a run, one of its checkpoints, or a converted folder."""
    from lola_ds.build import WEIGHTS, autoencoder_folder
    from lola_ds.config import load_config
    from lola_ds.models.lola import ORIGINAL
    from lola_ds.train.checkpoint.export import (
        choose,
        find_checkpoint,
        model_weights,
        read_weights,
    )

    if (path / WEIGHTS).is_file():
        if which is not None:
            raise ValueError(f"--ema {which}: {path} holds one set of weights; leave --ema out")
        run, state, moment = path, read_weights(path / WEIGHTS), "converted"
    else:
        reader = find_checkpoint(path)
        choice = choose(reader, which or "ema")
        run, state = reader.folder.parent.parent, model_weights(reader, choice)
        moment = f"at step {reader.state['step']}, {choice.name}"
    config = load_config(run / "config.yaml")
    autoencoder = None
    if config["ae_run"] is not None:
        try:
            autoencoder = autoencoder_folder(run, config)
        except FileNotFoundError:
            if ORIGINAL not in config:  # a run of lola may have been imported without
                raise
    return Model(config, state, autoencoder, f"{config['task']} {moment}")


def _read_lola(path: Path) -> Model:
    """Reads a run of the published code, strictly."""
    import torch

    from lola_ds.build import AUTOENCODER, build_model, check_weights
    from lola_ds.config import find_dataset, load_config
    from lola_ds.models.lola import import_config, read_state

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
        return Model(config, state, None, origin)
    group = config["surrogate" if config["task"] == "surrogate" else "denoiser"]
    if autoencoder is not None or group["channels"] != len(config["dataset"]["fields"]):
        config["ae_run"] = str(places[-1] if autoencoder is None else autoencoder)
        origin += ", without its autoencoder, which is not there" * (autoencoder is None)
    return Model(config, state, autoencoder, origin)


def _write(model: Model, out: Path) -> None:
    """Writes a converted folder."""
    from lola_ds.build import WEIGHTS
    from lola_ds.config import save_config
    from lola_ds.train.checkpoint.export import write_weights

    write_weights(model.state, out / WEIGHTS)
    save_config(model.config, out / "config.yaml")


def _verify(model: Model, out: Path) -> None:
    """Reads a folder back and compares it with the model; says so.

    Raises:
        ValueError: names a tensor that differs, or that is missing or too many.
    """
    from lola_ds.build import WEIGHTS
    from lola_ds.models.lola import read_state
    from lola_ds.train.checkpoint.tensor_file import same_bits

    plain = (out / WEIGHTS).is_file()
    written = _Reopened(out / WEIGHTS) if plain else read_state(out)
    if differing := set(written) ^ set(model.state):
        raise ValueError(f"{out}: {min(differing)} was not written, or not read")
    for name, tensor in model.state.items():
        if not same_bits(tensor, written[name]):
            raise ValueError(f"{out}: {name} differs from what it was written from")
    print(f"{len(written)} tensors read back, equal bit for bit")


class _Reopened(Mapping[str, Any]):
    """The tensors of a file, by the `safetensors` library: another reader than the writer's.

    It maps the file anew for each of them, so that memory holds one at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return iter(list(file.keys()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _write_lola(model: Model, out: Path) -> None:
    """Writes a run of the published code."""
    from lola_ds.config import save_config
    from lola_ds.models.lola import export_config, write_state

    config = export_config(model.config)
    write_state(model.state, out)
    save_config(config, out / "config.yaml")


def _replace(staging: Path, out: Path) -> None:
    """Puts the finished folder in place of an earlier conversion, and of nothing else."""
    from lola_ds.atomic_io import replace_folder

    if out.exists() and not (out / "config.yaml").is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists and is not a converted model; choose another OUT")
    replace_folder(staging, out)
