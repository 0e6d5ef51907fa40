"""The overhead of the training loop over forward passes, backward passes and optimizer steps.

    python -m benchmarks.runtime [out=benchmarks/runtime.csv] [folder=/tmp/lola_runtime]
                                 [steps=60] [saves=5] [resolution=64] [threads=…]

A diffusion transformer is trained on real shards (simulated and written into `folder` if missing)
by the real loop, with reader threads, DeepSpeed's engine, the checks of every step, the moving
average, and a line of metrics every ten steps. On a CPU, the network is sized for steps of about
100 ms. Every call of the loop is timed, with a synchronisation of the device after it:

    forward, backward, optimizer   the three calls of the engine
    data                           waiting for the loader, and moving the batch to the device
    prepare                        transform and standardisation
    checks                         gradient norm and the step's numbers, summed over ranks
    average                        the moving average of the weights
    record                         progress bar, metrics.jsonl
    rest                           everything else: seeds, learning rate, clocks
    overhead                       everything but the engine's calls; also its mean, as batches are
                                   read several at a time and some steps write a line
    bare step                      the engine's calls alone, on one batch, after the training

One CSV row each: the median over the steps in ms, and its share of the median step.

Then a larger network is saved in both ways in turns, `saves` times each, during its training:

    synchronous         `Trainer.save` until the checkpoint is complete
    asynchronous        everything that training waits for: the call, the rest of the copy before
                        the next update, publishing; its share refers to the synchronous save
    step alone          a step while no save is in progress
    step under a save   a step during a save; its share refers to `step alone`
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.record import describe_machine, write_rows
from data_prep.cli.shard import main as shard
from data_prep.cli.synthesize import main as synthesize
from lola_ds.build.training import build_training
from lola_ds.cli.common import exit_at_once
from lola_ds.config import compose, parse_overrides
from lola_ds.distributed import Ranks, leave_process_group
from lola_ds.train.checkpoint.store import SaveState
from lola_ds.train.loop import Trainer
from lola_ds.train.zero import join_process_group

T = TypeVar("T")
PACKAGES = ("torch", "deepspeed")
ENGINE = ("forward", "backward", "optimizer")
LOOP = ("data", "prepare", "checks", "average", "record")
WARMUP = 10
NETWORK = {
    "cpu": ["hid_channels=96", "hid_blocks=2", "attention_heads=4", "patch_size=[1,4,4]"],
    "cuda": ["hid_channels=1024", "hid_blocks=12", "attention_heads=16", "patch_size=[1,4,4]"],
}
SAVED = {  # more to save, in fewer tokens
    "cpu": ["hid_channels=512", "hid_blocks=6", "attention_heads=8", "patch_size=[1,16,16]"],
    "cuda": NETWORK["cuda"],
}


class Clock:
    """Adds up the seconds of named calls, step by step.

    Arguments:
        device: The device to synchronise with.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = self.now()

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Adds the time within the context to `name`."""
        begin = self.now()
        yield
        self._seconds[name] += self.now() - begin

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """Wraps a function so that the time of its calls is added to `name`."""

        def wrapper(*args: Any, **kwargs: Any) -> T:
            with self.timing(name):
                return function(*args, **kwargs)

        return wrapper

    def end_step(self) -> None:
        """Ends a step, which began at the end of the previous one."""
        now = self.now()
        self.steps.append({**self._seconds, "step": now - self._last})
        self._seconds.clear()
        self._last = now

    def now(self) -> float:
        """The time in seconds, after synchronising with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class TimedEngine:
    """A DeepSpeed engine whose calls are timed.

    Arguments:
        engine: The engine.
        clock: The clock that adds up the times.
    """

    def __init__(self, engine: Any, clock: Clock) -> None:
        self._engine = engine
        self._forward = clock.timed("forward", engine)
        self.backward = clock.timed("backward", engine.backward)
        self.step = clock.timed("optimizer", engine.step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, batch: Any) -> Any:
        """The objective's loss and scalars."""
        return self._forward(batch)


def make_shards(folder: Path, resolution: int) -> Path:
    """Simulates a few flows and writes them as shards, unless they exist."""
    data = folder / f"shards_{resolution}"
    if not data.is_dir():
        well, partial = folder / f"well_{resolution}", folder / f"partial_{resolution}"
        words = [f"resolution={resolution}", "trajectories=8", "steps=33", "gammas=1.4"]
        synthesize(["dataset=euler_periodic", f"out={well}", *words])
        shutil.rmtree(partial, ignore_errors=True)
        shard(["dataset=euler_periodic", f"source={well}", f"out={partial}"])
        partial.rename(data)
    return data


def make_trainer(
    ranks: Ranks, data: Path, run: Path, steps: int, network: dict[str, list[str]] = NETWORK
) -> Trainer:
    """A new training of `steps` steps that saves at its end only."""
    if ranks.rank == 0:
        shutil.rmtree(run, ignore_errors=True)
    batch = (4 if ranks.device.type == "cuda" else 1) * ranks.world_size
    words = ["task=diffusion", f"data={data}", f"run={run}", "wandb.mode=disabled"]
    words += [f"denoiser.{word}" for word in network[ranks.device.type]]
    words += [f"train.batch_size={batch}", f"train.epoch_size={steps * batch}", "train.epochs=1"]
    words += ["valid.samples=8", "precision=fp32" if ranks.device.type == "cpu" else "kernels=auto"]
    return build_training(compose(words), ranks)


def observe(trainer: Trainer, clock: Clock) -> None:
    """Times every call of the loop."""
    bare = trainer.engine
    trainer.engine = TimedEngine(bare, clock)
    trainer.prepare = clock.timed("prepare", trainer.prepare)
    trainer.ema.update = clock.timed("average", trainer.ema.update)
    trainer._average = clock.timed("checks", trainer._average)
    advance = clock.timed("record", trainer.tracker.advance)
    trainer.tracker.log = clock.timed("record", trainer.tracker.log)
    trainer.watch.throughput.waiting = lambda: clock.timing("data")

    def end(*args: Any) -> None:
        advance(*args)
        clock.end_step()

    trainer.tracker.advance = end


def repeat_bare(engine: Any, batch: Any, rounds: int, clock: Clock) -> list[float]:
    """The seconds of steps that consist of the engine's calls only."""
    seconds = []
    for _ in range(rounds):
        begin = clock.now()
        loss, _ = engine(batch)
        engine.backward(loss)
        engine.step()
        seconds.append(clock.now() - begin)
    return seconds


def measure_overhead(ranks: Ranks, data: Path, folder: Path, steps: int) -> Iterator[dict]:
    """Rows of the loop's overhead."""
    trainer = make_trainer(ranks, data, folder / "overhead", steps)
    engine, clock = trainer.engine, Clock(ranks.device)
    observe(trainer, clock)
    trainer.fit()
    taken = clock.steps[WARMUP:]
    whole = statistics.median(step["step"] for step in taken)
    engine.train()
    batch = trainer.prepare(next(iter(trainer.loader)).to(ranks.device))
    bare = repeat_bare(engine, batch, steps, clock)
    trainer.close()
    for step in taken:
        step["overhead"] = step["step"] - sum(step[name] for name in ENGINE)
        step["rest"] = step["overhead"] - sum(step[name] for name in LOOP)
    medians = {
        name: statistics.median(step[name] for step in taken)
        for name in ("step", *ENGINE, *LOOP, "rest", "overhead")
    }
    medians["overhead, mean"] = statistics.fmean(step["overhead"] for step in taken)
    medians["bare step"] = statistics.median(bare)
    for name, seconds in medians.items():
        yield {
            "part": "loop",
            "what": name,
            "ms": f"{1e3 * seconds:.3f}",
            "share": f"{seconds / whole:.4f}",
        }


def measure_saves(ranks: Ranks, data: Path, folder: Path, saves: int) -> Iterator[dict]:
    """Rows of the cost of synchronous and asynchronous saves."""
    trainer = make_trainer(ranks, data, folder / "saves", 1000, SAVED)
    batches, store, clock = iter(trainer.loader), trainer.store, Clock(ranks.device)
    seconds: dict[str, list[float]] = defaultdict(list)
    settle, waited = store.wait_until_read, 0.0

    def timed(function: Callable[[], Any]) -> float:
        begin = clock.now()
        function()
        return clock.now() - begin

    def settle_timed() -> None:
        nonlocal waited
        waited += timed(settle)

    store.wait_until_read = settle_timed
    for number in range(-1, saves):  # the first of each way allocates memory
        for _ in range(3):
            alone = timed(lambda: trainer.train_step(batches))
        store.asynchronous = False
        whole = timed(lambda: trainer.save({}))
        trainer.train_step(batches)
        store.asynchronous, waited, under = True, 0.0, []
        stalled = timed(lambda: trainer.save({}))
        while store.state is not SaveState.IDLE:
            under.append(timed(lambda: trainer.train_step(batches)))
            stalled += timed(lambda: store.poll(trainer.writing))
        stalled += waited
        if number >= 0:
            for name, value in (("synchronous", whole), ("asynchronous", stalled)):
                seconds[name].append(value)
            seconds["step alone"].append(alone)
            seconds["step under a save"] += under
    trainer.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        reference = medians["step alone" if name.startswith("step") else "synchronous"]
        share = f"{value / reference:.4f}"
        yield {"part": "saves", "what": name, "ms": f"{1e3 * value:.3f}", "share": share}


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/runtime.csv"
    folder: str = "/tmp/lola_runtime"
    steps: int = 60
    saves: int = 5
    resolution: int = 64
    threads: int | None = None


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    options = parse_overrides(Options, words)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    data = make_shards(folder, options.resolution)
    ranks = join_process_group("auto")
    rows = []
    measured = chain(
        measure_overhead(ranks, data, folder, options.steps),
        measure_saves(ranks, data, folder, options.saves),
    )
    for row in measured:
        rows.append({**row, "ranks": ranks.world_size, **describe_machine(PACKAGES)})
        if ranks.rank == 0:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if ranks.rank == 0:
        write_rows(options.out, rows)
    leave_process_group()


if __name__ == "__main__":
    exit_at_once(lambda: main(sys.argv[1:]))
