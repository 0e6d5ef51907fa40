"""`lola-ds shard`: The Well's HDF5, or a latent cache -> shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments, parse_pairs

HELP = """
Turn The Well's HDF5 files, or lola's latent caches, into shards with an index.

  dataset=NAME   a configuration (euler_periodic) or a folder name of the source
  source=WELL    root of the HDF5 files: WELL/<folder>/data/{train,valid,test}/*.hdf5
  out=SHARDS     root of the shards: SHARDS/<folder>/<split>/*.tar and index.npz
  split=SPLIT    train, valid or test; all that there are by default
  workers=N      processes; by default one per gigabyte, at most one per core and file
  dtype=TYPE     float32 (bitwise what the source holds), float16 or bfloat16
  shard_mb=MB    size target of a shard; 2000 by default
  task=I/N       write only every N-th file, from the I-th on (0 is the first), as one of N tasks;
                 a job of a Slurm array takes its own place by itself, task=0/1 prevents that
  --latents      source=CACHE is a latent cache, CACHE/<dataset>/<split>/*.h5 with `state` and
                 `label`; all of its datasets by default
  --allow-nan    record NaN and infinity in the index instead of refusing them

A split appears when it is complete. A command that was interrupted goes on where it stopped when it
is run again, and gives the same bytes as one that was not. Every shard is read back and compared.
Tasks need no common start: whichever finds all files written makes the split visible.

Examples:
  lola-ds shard dataset=euler_periodic source=well out=shards
  lola-ds shard dataset=euler_multi_quadrants_openBC source=well out=shards split=train workers=8
  sbatch --array=0-7 --wrap "lola-ds shard dataset=rayleigh_benard source=well out=shards"
  lola-ds shard source=runs/ae/cache out=latents --latents
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("shard", HELP)
    parser.add_argument("--allow-nan", action="store_true")
    parser.add_argument("--latents", action="store_true")
    args, words = parse_arguments(parser, argv)
    defaults = {"dataset": "", "source": "", "out": "", "split": "", "workers": 0}
    values = parse_pairs(
        words,
        {**defaults, "dtype": "float32", "shard_mb": 2000, "task": ""},
        required=("source", "out") if args.latents else ("dataset", "source", "out"),
    )
    from data_prep.well import SPLITS
    from lola_ds.data.format import STORED

    if values["dtype"] not in STORED:
        raise ValueError(f"dtype={values['dtype']}: expected one of {', '.join(STORED)}")
    if values["split"] not in ("", *SPLITS):
        raise ValueError(f"split={values['split']}: expected one of {', '.join(SPLITS)}")
    for name, least in (("workers", 0), ("shard_mb", 1)):
        if values[name] < least:
            raise ValueError(f"{name}={values[name]}: must be at least {least}")

    options = {
        "workers": values["workers"] or None,
        "dtype": values["dtype"],
        "allow_nan": args.allow_nan,
        "shard_bytes": values["shard_mb"] * 1_000_000,
        "task": parse_task(values["task"]) if values["task"] else array_task(os.environ),
    }
    for name, index in (_shard_latents if args.latents else _shard_fields)(values, options):
        if index is None:
            number, count = options["task"]
            print(f"{name}: task {number}/{count} is done, others are not")
        else:
            _print_summary(index)


def _shard_fields(values: dict[str, Any], options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Writes splits from The Well's files; yields their names and indexes."""
    from data_prep.well import list_files, list_splits
    from data_prep.well_to_shards import check_files, shard_split

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
            include_filters=filters,
            fields=fields,
            transform=config.get("transform"),
            gravity=config.get("gravity") or (),
            **options,
        )
        yield f"{values['out']}/{physics}/{split}", index


def _shard_latents(values: dict[str, Any], options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Writes splits from a latent cache; yields their names and indexes."""
    from data_prep.latents_to_shards import list_caches, shard_latents

    config = dataset_config(values["dataset"]) if values["dataset"] else {"physics": []}
    splits = list_caches(values["source"], config["physics"])
    splits = [part for part in splits if values["split"] in ("", part[1])]
    if not splits:
        raise FileNotFoundError(f"{values['source']}: no split '{values['split']}'")
    for dataset, split in splits:
        scalars = config.get("scalars") or ()
        index = shard_latents(
            values["source"], values["out"], dataset, split, scalars=scalars, **options
        )
        yield f"{values['out']}/{dataset}/{split}", index


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


def parse_task(text: str) -> tuple[int, int]:
    """`3/8` -> (3, 8).

    Raises:
        ValueError: not two numbers I/N with 0 <= I < N.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"task={text}: expected I/N with I from 0 to N - 1")
    return int(number), int(count)


def array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """This job's place in its Slurm array, (0, 1) outside of one."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", 0), ("STEP", 1))
    )
    number = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
    count = int(environment["SLURM_ARRAY_TASK_COUNT"])
    if not 0 <= number < count:
        raise ValueError(
            f"SLURM_ARRAY_TASK_ID={environment['SLURM_ARRAY_TASK_ID']} of {count} tasks: the array "
            "is not evenly numbered; say task=I/N"
        )
    return number, count


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
