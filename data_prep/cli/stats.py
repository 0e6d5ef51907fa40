"""`lola-ds stats`: field statistics of The Well's HDF5 -> the dataset's YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments, parse_pairs

HELP = """
Field statistics of a dataset's training split, after the transform of its configuration.

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


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words after its name."""
    parser = make_parser("stats", HELP)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--allow-nan", action="store_true")
    args, words = parse_arguments(parser, argv)
    defaults = {"dataset": "", "source": "", "out": "", "split": "train", "workers": 0}
    values = parse_pairs(words, {**defaults, "transform": ""}, required=("dataset", "source"))
    if values["workers"] < 0:
        raise ValueError(f"workers={values['workers']}: must be at least 0")

    from data_prep.cli.shard import dataset_config
    from data_prep.statistics import gather_statistics
    from data_prep.well import SPLITS, list_files
    from data_prep.well_to_shards import check_files

    if values["split"] not in SPLITS:
        raise ValueError(f"split={values['split']}: expected one of {', '.join(SPLITS)}")
    config = dataset_config(values["dataset"])
    if values["transform"]:
        config["transform"] = _parse_transform(values["transform"])
    filters = config.get("include_filters") or ()
    paths = [
        path
        for physics in config["physics"]
        for path in list_files(values["source"], physics, values["split"], filters)
    ]
    check_files(paths, config.get("fields"))
    config = complete_config(values["dataset"], config, paths[0])
    out = Path(values["out"] or f"{config['name']}.yaml")
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists; --overwrite replaces it, or give another out=")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} to")

    statistics = gather_statistics(
        paths,
        config["fields"],
        config["transform"],
        workers=values["workers"] or None,
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
    source = f"{len(paths)} files of {', '.join(config['physics'])}, {values['split']}"
    if statistics.nonfinite:
        source += f"; {statistics.nonfinite} values that are not finite were left out"
    write_config(out, config, f"{source}, after the transform\n{text}")
    print(f"{source}\n{text}\nwrote {out}")


def complete_config(name: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A dataset configuration with every key; those that are missing are taken from a file."""
    from data_prep.well import BOUNDARY_CODES, WellFile
    from lola_ds.data.format import channel_names

    with WellFile(path) as file:
        described = [{"name": field, "rank": rank} for field, rank in file.fields]
        wraps = BOUNDARY_CODES["PERIODIC"]
        periodic = [all(code == wraps for code in sides) for sides in file.boundary(0).values()]
        augment = ["random_axis_flip"]
        augment += ["random_axis_permute"] if len(set(file.shape)) == 1 else []
        augment += ["random_axis_roll"] if any(periodic) else []
        found = {
            "name": name,
            "physics": [name],
            "include_filters": [],
            "dimensions": list(file.axes),
            "periodic": periodic[0] if len(set(periodic)) == 1 else periodic,
            "fields": list(channel_names(described, file.axes)),
            "transform": {},
            "stats": {},
            "scalars": list(file.scalars(0)),
            "log_scalars": [],
            "augment": augment,
        }
    return {**found, **config}


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


def write_config(path: Path, config: Mapping[str, Any], comment: str) -> None:
    """Writes a dataset configuration in the style of configs/dataset/, whole or not at all."""
    import yaml

    from lola_ds.atomic_io import write_atomic

    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in config.items():
        if key == "stats":
            lines.append("stats:")
            lines += [f"  {name}: [{', '.join(map(repr, x))}]" for name, x in value.items()]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
            lines.append(f"{key}: {text.removesuffix('...' + chr(10)).strip()}")
    write_atomic(path, "\n".join(lines) + "\n")


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
