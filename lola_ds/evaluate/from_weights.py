"""Evaluations of a folder of weights on the shards of its dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lola_ds.build import load_emulator, load_model, make_standardize
from lola_ds.config import load_config
from lola_ds.data import ShardDataset
from lola_ds.emulate.codec import Codec
from lola_ds.evaluate.output import Evaluation
from lola_ds.evaluate.processes import join_processes
from lola_ds.evaluate.provenance import write_provenance
from lola_ds.evaluate.resources import Resources
from lola_ds.evaluate.run import evaluate, evaluate_autoencoder
from lola_ds.evaluate.selection import spread_trajectories
from lola_ds.evaluate.settings import Forecast
from lola_ds.train.numerics import set_inference_precision

__all__ = ["evaluate_weights"]


def evaluate_weights(
    run: Path,
    data: Path,
    out: Path,
    forecasts: Sequence[Forecast],
    split: str = "test",
    trajectories: int | Sequence[int] | None = None,
    *,
    resources: Resources,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    draw: bool = True,
) -> Iterator[tuple[Evaluation, list[Path]]]:
    """Evaluates a trained model on a split of shards, one forecast setting after the other.

    Arguments:
        run: The folder of the weights and of their configuration.
        data: The folder of the shards, `data/<physics>/<split>`.
        out: The folder of results.
        forecasts: The settings of an emulator. Of an autoencoder, `steps` is the number of frames.
        split: The name of the split.
        trajectories: How many trajectories, spread evenly over the split, or which ones; all by
            default.
        resources: The memory and the largest batch.
        device: `cpu`, `cuda` or `auto`.
        precision: The precision of an emulator: `fp32`, `bf16` or `auto`.
        compiled: Whether to compile an emulator.
        draw: Whether to draw figures.

    Yields:
        Each evaluation and the files it wrote; nothing in all processes but the first.

    Raises:
        FileNotFoundError: The weights or the shards are missing.
        ValueError: The model, the data and the settings do not fit together.
    """
    config = load_config(run / "config.yaml")
    physics, alone = config["dataset"]["physics"], config["task"] == "autoencoder"
    dataset = ShardDataset(_split_folders(data, physics, split))
    if alone:
        _check_autoencoder(forecasts, precision, compiled)
    if isinstance(trajectories, int):
        trajectories = spread_trajectories(dataset, trajectories)
    processes, where = join_processes(device)
    shared = {
        "trajectories": trajectories,
        "resources": resources,
        "processes": processes,
        "draw": draw,
    }
    try:
        if alone:
            model = load_model(run)
            codec = Codec(model, make_standardize(config["dataset"]), where)
            steps, start = forecasts[0].steps, forecasts[0].starts[0]
            results = iter([evaluate_autoencoder(codec, dataset, out, steps, start, **shared)])
        else:
            emulator = load_emulator(
                run, where, set_inference_precision(precision, where), compiled
            )
            shared["train"] = _training_split(data, physics)
            results = (evaluate(emulator, dataset, out, f, **shared) for f in forecasts)
            model = emulator.model
        for evaluation in results:
            if evaluation is not None:
                count = sum(parameter.numel() for parameter in model.parameters())
                provenance = write_provenance(out, run, config, count)
                yield evaluation, [*evaluation.files, *provenance]
    finally:
        processes.leave()


def _check_autoencoder(forecasts: Sequence[Forecast], precision: str, compiled: bool) -> None:
    """Refuses settings that only emulators have."""
    if compiled or precision != "fp32":
        raise ValueError(
            f"precision={precision} compile={str(compiled).lower()}: an autoencoder alone is "
            "evaluated in fp32, not compiled"
        )
    steps, starts = sorted({f.steps for f in forecasts}), forecasts[0].starts
    if len(starts) > 1 or len(steps) > 1:
        raise ValueError(
            f"start={','.join(map(str, starts))} steps={','.join(map(str, steps))}: an autoencoder "
            "takes one first frame and one number of frames"
        )


def _split_folders(data: Path, physics: Sequence[str], split: str) -> list[Path]:
    """The folders of a split; the error for a missing one names the splits that exist."""
    folders = [data / name / split for name in physics]
    for folder in folders:
        if not folder.is_dir():
            found = sorted(path.parent.name for path in folder.parent.glob("*/index.npz"))
            known = f"splits there: {', '.join(found)}" if found else "no shards there"
            raise FileNotFoundError(
                f"{folder} does not exist ({known}); data= is the out= of `lola-ds shard`"
            )
    return folders


def _training_split(data: Path, physics: Sequence[str]) -> ShardDataset | None:
    """The training split, for the climatology; None if the shards have none."""
    folders = [data / name / "train" for name in physics]
    return ShardDataset(folders) if all(folder.is_dir() for folder in folders) else None
