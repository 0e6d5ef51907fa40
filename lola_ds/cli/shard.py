"""`lola-ds shard`: The Well's HDF5 -> shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import make_parser, parse_arguments, parse_pairs

HELP = """
Turn The Well's HDF5 files into shards with an index.

  dataset=NAME   a configuration (euler_periodic) or a folder name of the source
  source=WELL    root of the HDF5 files: WELL/<folder>/data/{train,valid,test}/*.hdf5
  out=SHARDS     root of the shards: SHARDS/<folder>/<split>/*.tar and index.npz
  split=SPLIT    train, valid or test; all that there are by default
  workers=N      processes; by default one per gigabyte, at most one per core and file
  dtype=TYPE     float32 (bitwise what the source holds), float16 or bfloat16
  shard_mb=MB    size target of a shard; 2000 by default
  --allow-nan    record NaN and infinity in the index instead of refusing them

A split appears when it is complete. A command that was interrupted goes on where it stopped when it
is run again, and gives the same bytes as one that was not. Every shard is read back and compared.

Examples:
  lola-ds shard dataset=euler_periodic source=well out=shards
  lola-ds shard dataset=euler_multi_quadrants_openBC source=well out=shards split=train workers=8
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("shard", HELP)
    parser.add_argument("--allow-nan", action="store_true")
    args, words = parse_arguments(parser, argv)
    defaults = {"dataset": "", "source": "", "out": "", "split": "", "workers": 0}
    values = parse_pairs(
        words,
        {**defaults, "dtype": "float32", "shard_mb": 2000},
        required=("dataset", "source", "out"),
    )
    from data_prep.well import SPLITS, list_files, list_splits
    from data_prep.well_to_shards import check_files, shard_split
    from lola_ds.data.format import STORED

    if values["dtype"] not in STORED:
        raise ValueError(f"dtype={values['dtype']}: expected one of {', '.join(STORED)}")
    if values["split"] not in ("", *SPLITS):
        raise ValueError(f"split={values['split']}: expected one of {', '.join(SPLITS)}")
    for name, least in (("workers", 0), ("shard_mb", 1)):
        if values[name] < least:
            raise ValueError(f"{name}={values[name]}: must be at least {least}")

    config = dataset_config(values["dataset"])
    wanted = [values["split"]] if values["split"] else []
    splits = [
        (physics, split)
        for physics in config["physics"]
        for split in wanted or list_splits(values["source"], physics)
    ]
    filters, fields = config.get("include_filters") or (), config.get("fields")
    for physics, split in splits:  # all of them before the first byte is written
        check_files(list_files(values["source"], physics, split, filters), fields)
    for physics, split in splits:
        index = shard_split(
            values["source"],
            values["out"],
            physics,
            split,
            workers=values["workers"] or None,
            dtype=values["dtype"],
            allow_nan=args.allow_nan,
            shard_bytes=values["shard_mb"] * 1_000_000,
            include_filters=filters,
            fields=fields,
            transform=config.get("transform"),
            gravity=config.get("gravity") or (),
        )
        _print_summary(index)


def dataset_config(name: str) -> dict[str, Any]:
    """The configuration `dataset/<name>.yaml`, or one for the source's folder `name`.

    Only what the source's reader needs is taken from it: `physics`, `include_filters`, `fields`,
    `transform`, `gravity`.
    """
    import yaml

    from lola_ds.config import config_folder

    path = Path(config_folder()) / "dataset" / f"{name}.yaml"
    if not path.is_file():
        return {"physics": [name]}
    return yaml.safe_load(path.read_text())


def _print_summary(index: Any) -> None:
    size = int(index.shard_sizes.sum())
    print(
        f"{index.folder}: {len(index)} trajectories, {len(index.checksums)} frames, "
        f"{len(index.shards)} shards, {size / 1e6:.1f} MB"
    )
    if index.dtype != "float32":
        statistics = index.header["statistics"]
        for name, error, std in zip(index.fields, statistics["rounding"], statistics["std"]):
            print(f"  {name}: {index.dtype} costs an error of {error:.2e} (rms; std {std:.2e})")
    if index.header["nonfinite"]:
        print(f"  warning: {len(index.header['nonfinite'])} frames hold NaN or infinity")
