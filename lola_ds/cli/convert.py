"""`lola-ds convert`: checkpoint -> plain weights; runs of the published code in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import fail, make_parser, parse_arguments

HELP = """Converts a checkpoint to plain weights.

Writes OUT/model.safetensors and OUT/config.yaml.

The folder is all that `load_model`, `load_emulator`, `lola-ds encode` and `lola-ds eval` need;
emulators of latents carry their autoencoder along in OUT/autoencoder.

--ema says which weights: `ema` (the default) is the first average of the configuration, `none` the
weights as they were optimised, a number the average with this ema.decay or sigma_rel. The
average of any other sigma_rel is reconstructed from power-law averages (docs/checkpoints.md).
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
    if args.ema is not None and args.source:
        fail(
            f"--ema {args.ema} with --from lola: its runs hold one set of weights; leave --ema out"
        )

    from lola_ds.build.convert import convert

    out = Path(words[1])
    conversion = convert(
        Path(words[0]),
        out,
        which=args.ema,
        from_lola=args.source is not None,
        to_lola=args.target is not None,
        verify=args.verify,
    )
    for count in conversion.verified:
        print(f"{count} tensors read back, equal bit for bit")
    print(f"{out}: {conversion.origin}")
