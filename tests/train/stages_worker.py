"""One rank: a small network trained at given ZeRO stages, one after another.

usage: stages_worker.py FOLDER:WORDS:STEPS:SAVE_AT …   each resumes from FOLDER/checkpoints if any

WORDS are Hydra overrides, separated by commas. At its end a training leaves `losses.json`,
`evaluated.json` (the loss at the weights to evaluate), `apart.json` (the first parameter in which
the ranks differ) and `moved.json` (the same, after one rank's `model.2.bias` moved by one bit).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, fill_deepspeed, to_dict, uses_cpu_adam
from lola_ds.train.checkpoint import load_weights, restore_ema, restore_optimizer
from lola_ds.train.ema import Ema, Exponential
from lola_ds.train.engine import Ranks, first_difference, join, leave, make_engine
from lola_ds.train.fragments import (
    evaluated,
    local_fragments,
    resident_fragments,
    torch_optimizer,
)
from lola_ds.train.optim import make_optimizer
from lola_ds.train.store import CheckpointStore

BATCH = 12


class Objective(nn.Module):
    """Regression by a small network with odd sizes, a scalar parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(5, 13), nn.SiLU(), nn.Linear(13, 3))
        self.gain = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("shift", torch.tensor([0.25]))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.gain * self.model(x) - x[:, :3].sin() + self.shift).square().mean()
        return loss, {}


def batch(step: int, rank: int, world_size: int) -> Tensor:
    x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))
    return x[rank * BATCH // world_size : (rank + 1) * BATCH // world_size]


def main() -> None:
    ranks = join("cpu")
    for job in sys.argv[1:]:
        folder, words, steps, save_at = job.split(":")
        train(ranks, Path(folder), words.split(","), int(steps), int(save_at))
    leave()


def train(ranks: Ranks, folder: Path, words: list[str], steps: int, save_at: int) -> None:
    fixed = ["task=autoencoder", "run=r", "data=d"]
    fixed += [f"train.batch_size={BATCH}", f"train.epoch_size={BATCH}"]
    config = to_dict(compose([*fixed, "optim.weight_decay=0.01", *words]))
    torch.manual_seed(0)
    objective = Objective()
    store = CheckpointStore(folder / "checkpoints", 2, ranks.rank, ranks.world_size)
    reader = store.newest()
    if reader:
        load_weights(objective, reader)
    ds_config = fill_deepspeed(config, ranks.world_size)
    optimizer = make_optimizer(
        objective.parameters(),
        config["optim"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_cpu=uses_cpu_adam(ds_config),
    )
    engine = make_engine(objective, optimizer, ds_config)
    fragments = local_fragments(engine, ranks.rank, ranks.world_size)
    ema = Ema(fragments, [Exponential(0.9)])
    start = 0
    if reader:
        start = reader.state["step"]
        resident = resident_fragments(engine, ranks.rank, ranks.world_size)
        restore_optimizer(torch_optimizer(engine), resident, reader, start)
        restore_ema(ema, reader)
    losses = []
    for step in range(start, steps):
        engine.optimizer.param_groups[0]["lr"] = 1e-2
        loss, _ = engine(batch(step, ranks.rank, ranks.world_size))
        engine.backward(loss)
        store.settle()
        engine.step()
        ema.update(step + 1)
        losses.append(average(loss, ranks))
        if step + 1 in (save_at, steps):
            store.save(
                step + 1,
                engine.module,
                fragments,
                torch_optimizer(engine),
                ema,
                {"step": step + 1},
            )
    store.finish()
    with evaluated(engine), torch.no_grad():
        loss, _ = engine(batch(0, ranks.rank, ranks.world_size))
    results = {
        "losses": losses,
        "evaluated": average(loss, ranks),
        "apart": first_difference(engine.module),
    }
    if engine.zero_optimization_stage() < 3:  # one rank's weights move by one bit
        bias = engine.module.model[2].bias.data
        if ranks.rank == ranks.world_size - 1:
            bias[0] = bias[0].nextafter(bias[0] + 1)
        results["moved"] = first_difference(engine.module)
    if ranks.rank == 0:
        for name, value in results.items():
            (folder / f"{name}.json").write_text(json.dumps(value))


def average(loss: Tensor, ranks: Ranks) -> float:
    """A loss averaged over the ranks."""
    mean = loss.detach().clone() / ranks.world_size
    torch.distributed.all_reduce(mean)
    return mean.item()


if __name__ == "__main__":
    exit_at_once(main)
