"""One rank: a small network trained at given ZeRO stages, one after another.

usage: stages_worker.py FOLDER:WORDS:STEPS:SAVE_AT …   each resumes from FOLDER/checkpoints if any

WORDS are Hydra overrides, separated by commas. At its end a training leaves `losses.json`,
`evaluated.json` (the loss at the weights to evaluate), `apart.json` (the first parameter in which
the ranks differ) and `moved.json` (the same, after one rank's `model.2.bias` moved by one bit).
One that began at its first step leaves `whole.pt`: the float32 weights and their averages as one
process that holds all of them sees them, and how many values each rank averages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, fill_deepspeed, save_config, uses_cpu_adam
from lola_ds.distributed import Ranks, first_difference, gather_objects, leave_process_group
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.checkpoint.training_state import load_weights, restore_ema, restore_optimizer
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential, PowerLaw
from lola_ds.train.optim import make_optimizer
from lola_ds.train.zero import Engine, join_process_group, open_nvme_store

BATCH = 12
PROFILES = [Exponential(0.9), PowerLaw(0.1)]


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
    ranks = join_process_group("cpu")
    for job in sys.argv[1:]:
        folder, words, steps, save_at = job.split(":")
        train(ranks, Path(folder), words.split(","), int(steps), int(save_at))
    leave_process_group()


def train(ranks: Ranks, folder: Path, words: list[str], steps: int, save_at: int) -> None:
    fixed = ["task=autoencoder", "run=r", "data=d"]
    fixed += [f"train.batch_size={BATCH}", f"train.epoch_size={BATCH}"]
    config = compose([*fixed, "optim.weight_decay=0.01", *words])
    torch.manual_seed(0)
    objective = Objective()
    ds_config = fill_deepspeed(config, ranks.world_size)
    nvme = open_nvme_store(ds_config)
    store = CheckpointStore(folder / "checkpoints", 2, ranks.rank, ranks.world_size, nvme=nvme)
    reader = store.newest()
    if reader:
        load_weights(objective, reader)
    optimizer = make_optimizer(
        objective.parameters(),
        config["optim"],
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_cpu=uses_cpu_adam(ds_config),
    )
    engine = Engine(objective, optimizer, ds_config, nvme=nvme)
    partitions = engine.local_partitions()
    ema = Ema(partitions, PROFILES, nvme)
    start = 0
    if reader:
        start = reader.state["step"]
        restore_optimizer(engine.optimizer, engine.resident_partitions(), reader, start, nvme)
        restore_ema(ema, reader)
    if ranks.rank == 0:
        save_config(config, folder / "config.yaml")
    losses, whole = [], whole_weights(engine)
    averages = [{name: weight.clone() for name, weight in whole.items()} for _ in PROFILES]
    for step in range(start, steps):
        engine.set_learning_rate(1e-2)
        loss, _ = engine(batch(step, ranks.rank, ranks.world_size))
        engine.backward(loss)
        store.wait_until_read()
        engine.step()
        ema.update(step + 1)
        whole = whole_weights(engine)
        for profile, average_of in zip(PROFILES, averages):
            for name, weight in whole.items():
                average_of[name].lerp_(weight, 1 - profile.decay(step + 1))
        losses.append(average(loss, ranks))
        if step + 1 in (save_at, steps):
            store.save(
                step + 1,
                engine.module,
                partitions,
                engine.optimizer,
                ema,
                {"step": step + 1},
            )
    store.wait()
    with engine.evaluated(), torch.no_grad():
        loss, _ = engine(batch(0, ranks.rank, ranks.world_size))
    results = {
        "losses": losses,
        "evaluated": average(loss, ranks),
        "apart": first_difference(engine.module),
    }
    if engine.stage < 3:  # one rank's weights move by one bit
        bias = engine.module.model[2].bias.data
        if ranks.rank == ranks.world_size - 1:
            bias[0] = bias[0].nextafter(bias[0] + 1)
        results["moved"] = first_difference(engine.module)
    owned = gather_objects(sum(value.numel() for value in ema.values[0]))
    if ranks.rank == 0:
        if start == 0:
            kinds = {profile.kind: a for profile, a in zip(PROFILES, averages)}
            torch.save({"weight": whole, **kinds, "owned": owned}, folder / "whole.pt")
        for name, value in results.items():
            (folder / f"{name}.json").write_text(json.dumps(value))


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """The float32 master weights, gathered by DeepSpeed. Collective."""
    named = list(engine.module.named_parameters())
    if engine.stage == 0:
        return {name: p.detach().clone() for name, p in named}
    return {name: safe_get_full_fp32_param(p).clone() for name, p in named}


def average(loss: Tensor, ranks: Ranks) -> float:
    """A loss averaged over the ranks."""
    mean = loss.detach().clone() / ranks.world_size
    torch.distributed.all_reduce(mean)
    return mean.item()


if __name__ == "__main__":
    exit_at_once(main)
