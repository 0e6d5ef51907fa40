"""The training loop: the only one, for every objective.

Progress is counted in optimizer steps of `train.batch_size` samples. Everything random is a
function of (seed, step, sample), so a run that resumes from a checkpoint takes the steps an
uninterrupted run would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lola_ds.binned_losses import bin_means
from lola_ds.data import Batch
from lola_ds.distributed import Ranks, first_difference, gather_objects, sum_over_ranks
from lola_ds.hashing import hash64
from lola_ds.log import logger
from lola_ds.train.anomaly import AnomalyDetector, AnomalyLocator
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.ema import Ema
from lola_ds.train.numerics import seed_device
from lola_ds.train.profiling import Profiler
from lola_ds.train.stop import StopRequest
from lola_ds.train.throughput import Throughput
from lola_ds.train.tracking import Tracker
from lola_ds.train.watchdog import Watchdog
from lola_ds.train.zero import Engine, LossScale, Partition


@dataclass(frozen=True)
class TrainingSchedule:
    """The lengths of a training and the intervals of saving and logging, in optimizer steps."""

    total_steps: int
    epoch_steps: int
    batch_size: int
    accumulation: int
    save_every: int
    log_every: int
    seed: int


@dataclass(frozen=True)
class Watch:
    """What observes a training: bad steps, speed, stalls, and a window under the profiler."""

    detector: AnomalyDetector
    locator: AnomalyLocator
    throughput: Throughput
    watchdog: Watchdog
    profiler: Profiler


class TrainingStoppedError(ValueError):
    """Training met too many bad steps in a row, or ranks that drifted apart."""


class Trainer:
    """Takes an objective from its first (or last saved) step to its last.

    Arguments:
        engine: the objective under DeepSpeed.
        ranks: this process among its peers.
        partitions: this rank's parts of the parameters.
        ema: their moving average.
        loader: endless; yields micro-batches and knows its position (`state_dict`).
        valid: the validation batches, the same every time.
        prepare: batch on the device -> standardised batch.
        learning_rate: optimizer step -> learning rate.
        store: where checkpoints go.
        tracker: where numbers go.
        schedule: lengths and intervals.
        watch: what observes it.
        scale: of the loss, for float16.
        step: optimizer steps already done, skipped ones included.
        stop: becomes true when this process is asked to stop early.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        ranks: Ranks,
        partitions: Sequence[Partition],
        ema: Ema,
        loader: Any,
        valid: Sequence[Batch],
        prepare: Callable[[Batch], Batch],
        learning_rate: Callable[[int], float],
        store: CheckpointStore,
        tracker: Tracker,
        schedule: TrainingSchedule,
        watch: Watch,
        scale: LossScale,
        step: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.engine = engine
        self.ranks = ranks
        self.partitions = partitions
        self.ema = ema
        self.loader = loader
        self.valid = valid
        self.prepare = prepare
        self.learning_rate = learning_rate
        self.store = store
        self.tracker = tracker
        self.schedule = schedule
        self.watch = watch
        self.scale = scale
        self.step = step
        self.stop = StopRequest() if stop is None else stop
        self.stopping = False
        self.writing = False

    def fit(self) -> None:
        """Trains to the end of the schedule, validating after every epoch and saving on the way.

        When any rank is asked to stop, all of them return early after the same step, saved, and
        `stopping` is true.

        Raises:
            TrainingStoppedError: too many steps in a row had to be skipped.
            OSError: a checkpoint could not be written.
        """
        try:
            self._fit()
        except TrainingStoppedError:  # on all ranks alike
            self.store.wait()
            raise
        self.store.wait()
        self.watch.watchdog.stop()

    def _fit(self) -> None:
        self.engine.train()
        batches = iter(self.loader)
        watch = self.watch
        while self.step < self.schedule.total_steps and not self.stopping:
            watch.watchdog.wind()
            watch.profiler.before(self.step)
            with watch.throughput.step(self.schedule.batch_size):
                values = self.train_step(batches)
            watch.profiler.after(self.step - 1)
            self.tracker.advance(self.schedule.batch_size, values.get("train/loss"))
            if self.step % self.schedule.log_every == 0:
                self.tracker.log(self.step, values | watch.throughput.lap())
            valid: dict[str, float] = {}
            if self.step % self.schedule.epoch_steps == 0:
                valid = self.validate()
                self.tracker.log(self.step, valid)
            last = self.step == self.schedule.total_steps
            if last or self.stopping or self.step % self.schedule.save_every == 0:
                self.save(valid)
            else:
                self.store.poll(self.writing)

    def close(self) -> None:
        """Ends the reader threads and flushes the record."""
        self.loader.close()
        self.tracker.close()

    def train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over all ranks; returns its numbers, averaged over the batch.

        A bad step changes no weights; its numbers are left out.

        Raises:
            TrainingStoppedError: too many steps in a row had to be skipped.
        """
        rate = self.learning_rate(self.step)
        self.engine.set_learning_rate(rate)
        watch, totals = self.watch, {}
        watch.locator.forget()
        for micro in range(self.schedule.accumulation):
            with watch.throughput.waiting():
                batch = next(batches).to(self.ranks.device, non_blocking=True)
            # Dropout is the only thing that reads the device's own generator.
            seed = hash64(self.schedule.seed, self.step, micro, self.ranks.rank)
            seed_device(self.ranks.device, seed)
            batch = self.prepare(batch)
            loss, scalars = self.engine(batch)
            watch.locator.see(batch, loss)
            self.engine.backward(loss, self.scale.factor)
            _add(totals, {"loss": loss.detach(), **scalars})
            if micro < self.schedule.accumulation - 1:
                self.engine.step()
        values, norm = self._average(totals)
        self.store.wait_until_read()
        if self.scale.factor is not None:
            self.engine.unscale(self.scale.factor)
        numbers = {"train/learning_rate": rate, **self.scale.numbers()}
        if self.scale.overflowed(values["loss"], norm):
            self._leave_out()
            return numbers | self.scale.numbers()
        if reason := watch.detector.judge(values["loss"], norm):
            self._leave_out()
            self._report_skip(reason)
            return numbers | {"train/skipped": watch.detector.skipped}
        self.engine.step()
        self.step += 1
        self.ema.update(self.updates)
        values = {f"train/{name}": value for name, value in values.items()}
        return values | {"train/grad_norm": norm} | numbers

    @property
    def updates(self) -> int:
        """Optimizer steps that changed the weights."""
        return self.step - self.watch.detector.skipped - self.scale.overflows

    def _leave_out(self) -> None:
        """Takes a step that changes no weights."""
        self.engine.skip_step()
        self.step += 1

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The losses over the validation batches, which have fixed noise and masks."""
        self.engine.train(False)
        totals: dict[str, Tensor] = {}
        weight = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        with self.engine.evaluated():
            for batch in self.valid:
                self.watch.watchdog.wind()
                batch = self.prepare(batch.to(self.ranks.device))
                loss, scalars = self.engine(batch)
                size = len(batch.x)
                _add(totals, {"loss": size * loss, **{k: size * v for k, v in scalars.items()}})
                weight += batch.weight.double().sum()
        self.engine.train()
        (count,), sums = _sum_over_ranks(totals, weight)
        values = _flatten({name: [v / count for v in value] for name, value in sums.items()})
        return {f"valid/{name}": value for name, value in values.items()}

    def save(self, valid: Mapping[str, float]) -> None:
        """Begins to write a checkpoint. Collective.

        Arguments:
            valid: what the validation of this step found; nothing if there was none.

        Raises:
            TrainingStoppedError: the ranks hold different weights.
            OSError: this checkpoint, or the one before, could not be written.
            ValueError: `checkpoint.best` names nothing that the validation found.
        """
        if (name := first_difference(self.engine.module)) is not None:
            raise TrainingStoppedError(
                f"step {self.step}: the ranks hold different weights, first of {name}; this state "
                "was not saved, the last checkpoint is intact; the same command resumes from it"
            )
        self.watch.watchdog.wind()
        state = {"step": self.step, "samples": self.step * self.schedule.batch_size}
        state |= {"updates": self.updates, "guard": self.watch.detector.state_dict()}
        state |= {"scale": self.scale.state_dict(), "loader": self.loader.state_dict()}
        state["valid"] = dict(valid)
        self.store.save(
            self.step,
            self.engine.module,
            self.partitions,
            self.engine.optimizer,
            self.ema,
            state,
        )
        if valid and self.store.best not in (None, *valid):
            self.store.wait()
            raise ValueError(
                f"checkpoint.best={self.store.best} is not a number of the validation; "
                f"known: {', '.join(valid)}"
            )

    def _average(self, totals: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        """Means over micro-batches and ranks, and the gradient norm; agrees on what comes next."""
        square = self.engine.squared_norm()
        flags = square.new_tensor([bool(self.stop), self.store.busy])
        (squares, stops, busy), sums = _sum_over_ranks(totals, square, *flags)
        self.stopping, self.writing = stops > 0, busy > 0
        count = self.schedule.accumulation * self.ranks.world_size
        means = _flatten({name: [v / count for v in value] for name, value in sums.items()})
        return means, squares**0.5 / self.scale.value

    def _report_skip(self, reason: str) -> None:
        """Says which ranks, windows and fields a bad step came from. Collective.

        Raises:
            TrainingStoppedError: it was one too many in a row.
        """
        detector, locator = self.watch.detector, self.watch.locator
        told = gather_objects((locator.tell(), locator.windows()))
        where = "; ".join(fault for fault, _ in told if fault)
        where = where or f"windows {sorted(window for _, some in told for window in some)}"
        message = f"step {self.step - 1} skipped: {reason} ({where})"
        logger.info(message)
        if detector.exhausted:
            raise TrainingStoppedError(
                f"{message}; that was {detector.in_a_row} in a row (watch.patience), so training "
                "stopped; the weights were never touched and the last checkpoint is intact: mend "
                "the data, or lower optim.learning_rate, and start the same command again"
            )


def _sum_over_ranks(
    totals: Mapping[str, Tensor], *more: Tensor
) -> tuple[list[float], dict[str, list[float]]]:
    """Sums of scalars `more` and of each tensor of `totals`, in one collective."""
    parts = [*more, *totals.values()]
    vector = sum_over_ranks(torch.cat([part.flatten() for part in parts]).double())
    values = iter(vector.tolist())
    split = [list(islice(values, part.numel())) for part in parts]
    return [value for (value,) in split[: len(more)]], dict(zip(totals, split[len(more) :]))


def _flatten(means: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Scalars by name, and each bin of binned losses by name and bin."""
    values: dict[str, float] = {}
    for name, mean in means.items():
        values |= {name: mean[0]} if len(mean) == 1 else bin_means(name, mean)
    return values


def _add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value
