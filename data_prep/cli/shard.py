"""`lola-ds shard`: The Well's HDF5, or a latent cache -> shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.config import SPLITS, parse_overrides, setting

HELP = """
Turns The Well's HDF5 or lola's latent caches into shards.

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


@dataclass
class Options:
    """The keys of the command."""

    source: str = setting()
    out: str = setting()
    dataset: str | None = None
    split: str | None = setting(None, choices=SPLITS)
    workers: int = setting(0, least=0)
    dtype: str = "float32"
    shard_mb: int = setting(2000, least=1)
    task: str | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("shard", HELP)
    parser.add_argument("--allow-nan", action="store_true")
    parser.add_argument("--latents", action="store_true")
    args, words = parse_arguments(parser, argv)
    options = parse_overrides(Options, words)
    if options.dataset is None and not args.latents:
        raise ValueError("missing dataset=…")
    from lola_ds.data.format import STORED

    if options.dtype not in STORED:
        raise ValueError(f"dtype={options.dtype} is unknown; choose one of {', '.join(STORED)}")
    settings = {
        "workers": options.workers or None,
        "dtype": options.dtype,
        "allow_nan": args.allow_nan,
        "shard_bytes": options.shard_mb * 1_000_000,
        "task": parse_task(options.task) if options.task else array_task(os.environ),
    }
    for name, index in (_shard_latents if args.latents else _shard_fields)(options, settings):
        if index is None:
            number, count = settings["task"]
            print(f"{name}: task {number}/{count} is done, others are not")
        else:
            _print_summary(index)


def _shard_fields(options: Options, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Writes splits from The Well's files; yields their names and indexes."""
    from data_prep.datasets import dataset_config
    from data_prep.well import list_files, list_splits
    from data_prep.well_to_shards import check_files, shard_split

    config = dataset_config(str(options.dataset))
    wanted = [options.split] if options.split else []
    splits = [
        (physics, split)
        for physics in config["physics"]
        for split in wanted or list_splits(options.source, physics)
    ]
    filters, fields = config.get("include_filters") or (), config.get("fields")
    for physics, split in splits:  # all of them before the first byte is written
        check_files(list_files(options.source, physics, split, filters), fields)
    for physics, split in splits:
        index = shard_split(
            options.source,
            options.out,
            physics,
            split,
            include_filters=filters,
            fields=fields,
            transform=config.get("transform"),
            gravity=config.get("gravity") or (),
            **settings,
        )
        yield f"{options.out}/{physics}/{split}", index


def _shard_latents(options: Options, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Writes splits from a latent cache; yields their names and indexes."""
    from data_prep.datasets import dataset_config
    from data_prep.latents_to_shards import list_caches, shard_latents

    config = dataset_config(options.dataset) if options.dataset else {"physics": []}
    splits = list_caches(options.source, config["physics"])
    splits = [part for part in splits if options.split in (None, part[1])]
    if not splits:
        raise FileNotFoundError(f"{options.source}: no split '{options.split}'")
    for dataset, split in splits:
        scalars = config.get("scalars") or ()
        index = shard_latents(
            options.source, options.out, dataset, split, scalars=scalars, **settings
        )
        yield f"{options.out}/{dataset}/{split}", index


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
