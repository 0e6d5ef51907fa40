"""SOAP and PSGD against AdamW on the demo's autoencoder: the loss at equal steps.

    python -m benchmarks.optimizers [data=demo/shards] [folder=/tmp/lola_optimizers]
                                    [out=benchmarks/optimizers.csv] [cases=…]

Every case is a run of `lola-ds train experiment=demo_autoencoder` with its own optimizer and
learning rate: 2,000 steps of 8 samples from the same initial weights in the same order, 50 steps of
warm-up, cosine decay. The data are those of `python -m launch.demo`. AdamW runs with several
learning rates, of which the best counts. An interrupted case is resumed; a complete one is not
trained again.

One CSV row per case and 200 steps: the mean of the training losses logged in these steps, the loss
over the same 64 validation samples, and how many times smaller it is than AdamW's best at that
step. A figure of the same name shows the curves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.record import describe_machine, write_rows
from lola_ds.config import parse_overrides
from lola_ds.evaluate.plots.style import FIELD_COLOURS, save_figure

STEPS, EVERY, BATCH = 2000, 200, 8
CASES = {
    "adamw_5e-4": ("adamw", 5e-4),
    "adamw_1e-3": ("adamw", 1e-3),
    "adamw_3e-3": ("adamw", 3e-3),
    "psgd_3e-4": ("psgd", 3e-4),
    "soap_1e-3": ("soap", 1e-3),
}
PACKAGES = ("torch", "deepspeed", "heavyball")
MACHINE = "machine.json"


def train(data: str, run: Path, optimizer: str, rate: float) -> None:
    """Trains one case to its end."""
    if not (run / MACHINE).is_file():
        run.mkdir(parents=True, exist_ok=True)
        (run / MACHINE).write_text(json.dumps(describe_machine(PACKAGES)))
    words = [
        "experiment=demo_autoencoder",
        f"data={data}",
        f"run={run}",
        f"optim={optimizer}",
        f"optim.learning_rate={rate}",
        "optim.scheduler=cosine",
        "deepspeed=zero0",
        f"train.batch_size={BATCH}",
        f"train.epoch_size={BATCH * EVERY}",
        f"train.epochs={STEPS // EVERY}",
        "train.workers=1",
        "valid.samples=64",
        "valid.batch_size=32",
        "wandb.mode=disabled",
    ]
    subprocess.run([sys.executable, "-m", "lola_ds.cli.main", "train", *words], check=True)


def read_losses(run: Path) -> list[dict[str, float]]:
    """Step, training loss and validation loss at the end of every epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {(line["step"], "valid/loss" in line): line for line in lines}  # resumed: the later one
    rows = []
    for (step, valid), line in sorted(last.items()):
        if valid:
            train = [
                other["train/loss"]
                for (k, validation), other in last.items()
                if not validation and step - EVERY < k <= step
            ]
            rows.append({"step": step, "train_loss": mean(train), "valid_loss": line["valid/loss"]})
    return rows


def tabulate(runs: dict[str, Path]) -> list[dict[str, Any]]:
    """The rows of the table."""
    losses = {case: read_losses(run) for case, run in runs.items()}
    best: dict[float, float] = {}
    for case, rows in losses.items():
        for row in rows if CASES[case][0] == "adamw" else []:
            best[row["step"]] = min(row["valid_loss"], best.get(row["step"], row["valid_loss"]))
    return [
        {
            "optimizer": CASES[case][0],
            "learning_rate": CASES[case][1],
            "step": row["step"],
            "train_loss": f"{row['train_loss']:.5f}",
            "valid_loss": f"{row['valid_loss']:.5f}",
            "times_below_adamw": f"{best[row['step']] / row['valid_loss']:.3f}",
            **json.loads((runs[case] / MACHINE).read_text()),
        }
        for case, rows in losses.items()
        for row in rows
    ]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and validation losses over steps, one line per case."""
    with save_figure(path, 6.5, 2.8) as fig:
        axes = fig.subplots(1, 2, sharey=True)
        labels = list(dict.fromkeys((row["optimizer"], row["learning_rate"]) for row in rows))
        for colour, (optimizer, rate) in zip(FIELD_COLOURS, labels):
            mine = [r for r in rows if (r["optimizer"], r["learning_rate"]) == (optimizer, rate)]
            style = {"color": colour, "linestyle": "--" if optimizer == "adamw" else "-"}
            for ax, key in zip(axes, ("train_loss", "valid_loss")):
                values = [float(row[key]) for row in mine]
                label = f"{optimizer}, {rate:g}"
                ax.plot([row["step"] for row in mine], values, marker="o", label=label, **style)
        for ax, title in zip(axes, ("training (mean of 200 steps)", "validation")):
            ax.set(title=title, xlabel="optimizer step", yscale="log")
        axes[0].set_ylabel("VRMSE")
        axes[1].legend(title="learning rate")


@dataclass
class Options:
    """The keys of the benchmark."""

    data: str = "demo/shards"
    folder: str = "/tmp/lola_optimizers"
    out: str = "benchmarks/optimizers.csv"
    cases: list[str] | None = None


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    options = parse_overrides(Options, words)
    runs = {case: Path(options.folder) / case for case in options.cases or CASES}
    for case, run in runs.items():
        train(options.data, run, *CASES[case])
    rows = tabulate(runs)
    write_rows(options.out, rows)
    draw(rows, Path(options.out).with_suffix(".png"))
    for row in rows:
        if row["step"] == STEPS:
            print(*list(row.values())[:6], sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
