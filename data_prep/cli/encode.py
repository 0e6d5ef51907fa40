"""`lola-ds encode`: autoencoder over shards -> latent shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.config import DEVICES, SPLITS, parse_overrides, setting

HELP = """Encodes shards of fields into shards of latents.

The autoencoder is a trained one.

Writes OUT/<physics>/<split> for every physics of the autoencoder's dataset, whole or not at all;
the same command again goes on where it stopped. repeat=N adds N-1 passes over the training split
under random symmetries (dataset.augment), since latents cannot be augmented later.

keys:
  run=FOLDER     the autoencoder: a converted folder, or a run folder (its newest checkpoint)
  data=SHARDS    shards of fields: SHARDS/<physics>/<split>
  out=LATENTS    where to write
  split=all      train, valid, test, or all
  repeat=1       passes over the training split
  batch_size=32  states encoded at once
  device=auto    auto, cpu or cuda
  precision=fp32 of matrix products and convolutions: fp32, bf16 (for a GPU; latents are a
                 little off) or auto (bf16 where the device has it)
  compile=false  whether to compile the autoencoder, for long splits
  seed=0         of the symmetries

examples:
  lola-ds encode run=weights/ae data=SHARDS out=LATENTS
  lola-ds encode run=runs/ae data=SHARDS out=LATENTS repeat=4 split=train
  lola-ds encode run=weights/ae data=SHARDS out=LATENTS precision=bf16 compile=true"""


@dataclass
class Options:
    """The keys of the command."""

    run: str = setting()
    data: str = setting()
    out: str = setting()
    split: str = setting("all", choices=("all", *SPLITS))
    repeat: int = setting(1, least=1)
    batch_size: int = setting(32, least=1)
    device: str = setting("auto", choices=DEVICES)
    precision: str = "fp32"
    compile: bool = False
    seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Encodes the splits that exist."""
    _, words = parse_arguments(make_parser("encode", HELP), argv)
    options = parse_overrides(Options, words)

    from data_prep.encode import encode_split
    from lola_ds.build import load_model, make_standardize
    from lola_ds.config import load_config
    from lola_ds.emulate.codec import Codec, fingerprint
    from lola_ds.nn.inference import prepare_for_inference
    from lola_ds.train.numerics import set_inference_precision

    run = Path(options.run)
    config = load_config(run / "config.yaml")
    if config["task"] != "autoencoder":
        raise ValueError(f"run={run} is of task={config['task']}; encoding needs an autoencoder")
    device = _device(options.device)
    precision = set_inference_precision(options.precision, device)
    model = load_model(run, device)
    provenance = {"autoencoder": fingerprint(model)}
    provenance |= {} if precision == "fp32" else {"precision": precision}
    prepare_for_inference(model, precision)
    codec = Codec(model, make_standardize(config["dataset"]), device, options.compile)
    folders = _splits(Path(options.data), config["dataset"]["physics"], options.split)
    for source in folders:
        train = source.name == "train"
        encode_split(
            _encoder(codec, precision, options.batch_size),
            source,
            Path(options.out) / source.parent.name / source.name,
            provenance=provenance,
            augment=config["dataset"]["augment"] if train else (),
            repeat=options.repeat if train else 1,
            seed=options.seed,
            batch_size=options.batch_size,
        )


def _splits(data: Path, physics: Sequence[str], split: str) -> list[Path]:
    """The folders to encode.

    Raises:
        FileNotFoundError: none of them exists.
    """
    names = SPLITS if split == "all" else (split,)
    folders = [data / p / name for p in physics for name in names]
    found = [folder for folder in folders if folder.is_dir()]
    if not found or (split != "all" and len(found) < len(folders)):
        missing = next(folder for folder in folders if not folder.is_dir())
        raise FileNotFoundError(f"{missing} is missing; make it: `lola-ds shard out={data}`")
    return found


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _encoder(codec: Any, precision: str, batch: int) -> Callable[[Any], Any]:
    """Physical states (B, C, *S), at most a batch of them, to latents (B, C', *S')."""
    import torch

    def encode(x: Any) -> Any:
        with torch.autocast(codec.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return codec.encode(x.transpose(0, 1), batch).transpose(0, 1)

    return encode
