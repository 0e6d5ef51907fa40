"""`lola-ds encode`: autoencoder over shards -> latent shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments, parse_pairs

HELP = """Encodes shards of fields into shards of latents with a trained autoencoder.

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


def main(argv: Sequence[str]) -> None:
    """Encodes the splits that exist."""
    _, words = parse_arguments(make_parser("encode", HELP), argv)
    values = parse_pairs(
        words,
        {
            "run": None,
            "data": None,
            "out": None,
            "split": "all",
            "repeat": 1,
            "batch_size": 32,
            "device": "auto",
            "precision": "fp32",
            "compile": False,
            "seed": 0,
        },
        required=("run", "data", "out"),
    )
    if values["split"] not in ("all", "train", "valid", "test"):
        raise ValueError(f"split={values['split']}: choose train, valid, test or all")

    from data_prep.encode import encode_split
    from lola_ds.build import load_model, make_standardize
    from lola_ds.config import load_config
    from lola_ds.emulate.codec import Codec, fingerprint
    from lola_ds.nn.inference import prepare_for_inference
    from lola_ds.train.numerics import set_inference_precision

    run = Path(values["run"])
    config = load_config(run / "config.yaml")
    if config["task"] != "autoencoder":
        raise ValueError(f"run={run} is of task={config['task']}; encoding needs an autoencoder")
    device = _device(values["device"])
    precision = set_inference_precision(values["precision"], device)
    model = load_model(run, device)
    provenance = {"autoencoder": fingerprint(model)}
    provenance |= {} if precision == "fp32" else {"precision": precision}
    prepare_for_inference(model, precision)
    codec = Codec(model, make_standardize(config["dataset"]), device, values["compile"])
    folders = _splits(Path(values["data"]), config["dataset"]["physics"], values["split"])
    for source in folders:
        train = source.name == "train"
        encode_split(
            _encoder(codec, precision, values["batch_size"]),
            source,
            Path(values["out"]) / source.parent.name / source.name,
            provenance=provenance,
            augment=config["dataset"]["augment"] if train else (),
            repeat=values["repeat"] if train else 1,
            seed=values["seed"],
            batch_size=values["batch_size"],
        )


def _splits(data: Path, physics: Sequence[str], split: str) -> list[Path]:
    """The folders to encode.

    Raises:
        FileNotFoundError: none of them exists.
    """
    names = ("train", "valid", "test") if split == "all" else (split,)
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
