"""`lola-ds convert`: checkpoint -> plain weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .common import fail, make_parser, parse_arguments

HELP = """Converts a checkpoint to plain weights: OUT/model.safetensors and OUT/config.yaml.

The folder is all that `load_model`, `load_emulator`, `lola-ds encode` and `lola-ds eval` need;
emulators of latents carry their autoencoder along in OUT/autoencoder.

examples:
  lola-ds convert runs/ae weights/ae                    the newest checkpoint's averaged weights
  lola-ds convert runs/ae weights/ae --ema none         the weights as they were optimised
  lola-ds convert runs/ae/checkpoints/step_00004000 weights/ae_4000"""


def main(argv: Sequence[str]) -> None:
    """Writes OUT whole or not at all."""
    parser = make_parser("convert", HELP)
    parser.add_argument(
        "--ema", choices=("ema", "none"), default="ema", help="which weights (default: ema)"
    )
    args, words = parse_arguments(parser, argv)
    if len(words) != 2:
        fail("expected RUN|CHECKPOINT and OUT (see lola-ds convert --help)")
    source, out = Path(words[0]), Path(words[1])

    from ..build import AUTOENCODER, WEIGHTS, autoencoder_folder
    from ..config import load_config, save_config
    from ..train.export import export_weights, find_checkpoint

    reader = find_checkpoint(source)
    run = reader.folder.parent.parent
    config = load_config(run / "config.yaml")
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    export_weights(reader, staging / WEIGHTS, ema=args.ema == "ema")
    save_config(config, staging / "config.yaml")
    if config["ae_run"] is not None:
        _copy_autoencoder(autoencoder_folder(run, config), staging / AUTOENCODER)
    _replace(staging, out)
    print(f"{out}: {config['task']} at step {reader.state['step']}")


def _copy_autoencoder(source: Path, out: Path) -> None:
    from ..build import WEIGHTS
    from ..train.export import export_weights, find_checkpoint

    out.mkdir()
    shutil.copy2(source / "config.yaml", out / "config.yaml")
    if (source / WEIGHTS).is_file():
        shutil.copy2(source / WEIGHTS, out / WEIGHTS)
    else:
        export_weights(find_checkpoint(source), out / WEIGHTS, ema=True)


def _replace(staging: Path, out: Path) -> None:
    """Puts the finished folder in place of an earlier conversion, and of nothing else."""
    if out.exists():
        if not (out / "config.yaml").is_file() and any(out.iterdir()):
            shutil.rmtree(staging)
            raise FileExistsError(f"{out} exists and is not a converted model; choose another OUT")
        shutil.rmtree(out)
    staging.rename(out)
