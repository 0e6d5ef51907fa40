"""`lola-ds stats`: field statistics of The Well's HDF5 -> the dataset's YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lola_ds.cli.common import make_parser, parse_arguments
from lola_ds.config import SPLITS, parse_overrides, setting

HELP = """
Computes the field statistics of a dataset's training split.

The fields are transformed as in the configuration first.

Mean, standard deviation, extremes and quantiles of every channel, in one pass over The Well's HDF5,
in parallel over files. Prints a table, and writes a dataset configuration with the statistics in
place (and the table as a comment), ready for configs/dataset/.

  dataset=NAME      a configuration (rayleigh_benard), whose fields and transforms are used, or a
                    folder name of the source, which gets a new configuration without transforms
  source=WELL       root of the HDF5 files: WELL/<folder>/data/{train,valid,test}/*.hdf5
  out=FILE          the YAML to write; <name>.yaml by default
  split=train       train, valid or test
  workers=N         processes; by default one per core, at most one per file
  transform=T       instead of the configuration's: 0:log1p,2:log_eps, or none
  --overwrite       replace FILE if it is there
  --allow-nan       leave out values that are NaN or infinite instead of refusing them

Quantiles are off by at most 0.2 % of their size; the rest is exact to rounding.

Examples:
  lola-ds stats dataset=rayleigh_benard source=well
  lola-ds stats dataset=shear_flow source=well transform=0:arcsinh out=configs/dataset/shear.yaml
"""

LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""The quantiles that are reported."""


@dataclass
class Options:
    """The keys of the command."""

    dataset: str = setting()
    source: str = setting()
    out: str | None = None
    split: str = setting("train", choices=SPLITS)
    workers: int = setting(0, least=0)
    transform: str | None = None


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("stats", HELP)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--allow-nan", action="store_true")
    args, words = parse_arguments(parser, argv)
    options = parse_overrides(Options, words)

    from data_prep.datasets import complete_config, dataset_config, write_config
    from data_prep.statistics import gather_statistics
    from data_prep.well import list_files
    from data_prep.well_to_shards import check_files

    config = dataset_config(options.dataset)
    if options.transform is not None:
        config["transform"] = _parse_transform(options.transform)
    filters = config.get("include_filters") or ()
    paths = [
        path
        for physics in config["physics"]
        for path in list_files(options.source, physics, options.split, filters)
    ]
    check_files(paths, config.get("fields"))
    config = complete_config(options.dataset, config, paths[0])
    out = Path(options.out or f"{config['name']}.yaml")
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists; --overwrite replaces it, or give another out=")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} to")

    statistics = gather_statistics(
        paths,
        config["fields"],
        config["transform"],
        workers=options.workers or None,
        allow_nan=args.allow_nan,
    )
    table = statistics.summary(LEVELS)
    flat = [name for name, std in zip(config["fields"], table["std"]) if not std > 0]
    if flat:
        raise ValueError(f"{', '.join(flat)}: constant in {len(paths)} files; nothing to scale by")
    config["stats"] = {
        key: [_rounded(x, std) for x, std in zip(table[key], table["std"])]
        for key in ("mean", "std")
    }
    text = format_table(config["fields"], config["transform"], table)
    source = f"{len(paths)} files of {', '.join(config['physics'])}, {options.split}"
    if statistics.nonfinite:
        source += f"; {statistics.nonfinite} values that are not finite were left out"
    write_config(out, config, f"{source}, after the transform\n{text}")
    print(f"{source}\n{text}\nwrote {out}")


def format_table(
    fields: Sequence[str], transform: Mapping[int, str], table: Mapping[str, Sequence[float]]
) -> str:
    """A table for people, a row per channel."""
    names = [f"{transform[c]}({name})" if c in transform else name for c, name in enumerate(fields)]
    columns = [["field", *names]]
    for key, values in table.items():
        head = f"{float(key) * 100:g} %" if key[0].isdigit() else key
        cells = [f"{x}" if key == "count" else f"{x:.4g}" for x in values]
        columns.append([head, *cells])
    widths = [max(map(len, column)) for column in columns]
    rows = []
    for row in zip(*columns):
        first, *rest = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        rows.append("  ".join([first, *rest]))
    return "\n".join(rows)


def _rounded(x: float, scale: float) -> float:
    """Five significant digits, and none below 1e-5 of a scale."""
    digits = 5 - math.ceil(math.log10(max(abs(x), scale)))
    return round(x, digits) + 0.0  # never -0.0


def _parse_transform(text: str) -> dict[int, str]:
    """`0:log1p,2:log_eps` -> {0: "log1p", 2: "log_eps"}; `none` -> {}."""
    if text == "none":
        return {}
    transform = {}
    for word in text.split(","):
        channel, colon, name = word.partition(":")
        if not (colon and channel.isdecimal()):
            raise ValueError(f"transform={text}: expected channel:name,… such as 0:log1p, or none")
        transform[int(channel)] = name
    return transform
