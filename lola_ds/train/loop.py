"""The training loop: the only one, for every objective.

Progress is counted in optimizer steps of `train.batch_size` samples. Everything random is a
function of (seed, step, sample), so a run that resumes from a checkpoint takes the steps an
uninterrupted run would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Batch
from .checkpoint import CheckpointStore
from .ema import Ema
from .engine import Ranks, first_difference, sum_over_ranks
from .fragments import Fragment, evaluated, torch_optimizer
from .seeds import hash_seed
from .stop import StopRequest
from .tracking import Tracker


@dataclass(frozen=True)
class Plan:
    """How far to train and what to do on the way; all lengths in optimizer steps."""

    total_steps: int
    epoch_steps: int
    batch_size: int
    accumulation: int
    save_every: int
    log_every: int
    seed: int


class TrainingStoppedError(ValueError):
    """Training met a loss or gradient that is not finite, or ranks that drifted apart."""


class Trainer:
    """Takes an objective from its first (or last saved) step to its last.

    Arguments:
        engine: DeepSpeed engine around the objective.
        ranks: this process among its peers.
        fragments: this rank's parts of the parameters.
        ema: their moving average.
        loader: endless; yields micro-batches and knows its position (`state_dict`).
        valid: the validation batches, the same every time.
        prepare: batch on the device -> standardised batch.
        learning_rate: optimizer step -> learning rate.
        store: where checkpoints go.
        tracker: where numbers go.
        plan: lengths and intervals.
        step: optimizer steps already done.
        stop: becomes true when this process is asked to stop early.
    """

    def __init__(
        self,
        *,
        engine: Any,
        ranks: Ranks,
        fragments: Sequence[Fragment],
        ema: Ema,
        loader: Any,
        valid: Sequence[Batch],
        prepare: Callable[[Batch], Batch],
        learning_rate: Callable[[int], float],
        store: CheckpointStore,
        tracker: Tracker,
        plan: Plan,
        step: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.engine = engine
        self.ranks = ranks
        self.fragments = fragments
        self.ema = ema
        self.loader = loader
        self.valid = valid
        self.prepare = prepare
        self.learning_rate = learning_rate
        self.store = store
        self.tracker = tracker
        self.plan = plan
        self.step = step
        self.stop = StopRequest() if stop is None else stop
        self.stopping = False

    def fit(self) -> None:
        """Trains to the end of the plan, validating after every epoch and saving on the way.

        When any rank is asked to stop, all of them return early after the same step, saved, and
        `stopping` is true.

        Raises:
            TrainingStoppedError: a loss or gradient is not finite.
        """
        batches = iter(self.loader)
        clock = _Clock()
        while self.step < self.plan.total_steps and not self.stopping:
            values = self.train_step(batches)
            self.tracker.advance(self.plan.batch_size, values["train/loss"])
            if self.step % self.plan.log_every == 0:
                values |= clock.lap(self.plan.batch_size * self.plan.log_every)
                self.tracker.log(self.step, values)
            if self.step % self.plan.epoch_steps == 0:
                self.tracker.log(self.step, self.validate())
            last = self.step == self.plan.total_steps
            if last or self.stopping or self.step % self.plan.save_every == 0:
                self.save()

    def close(self) -> None:
        """Ends the reader threads and flushes the record."""
        self.loader.close()
        self.tracker.close()

    def train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over all ranks; returns its numbers, averaged over the batch."""
        self.engine.train()
        rate = self.learning_rate(self.step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, Tensor] = {}
        for micro in range(self.plan.accumulation):
            batch = next(batches).to(self.ranks.device, non_blocking=True)
            # Dropout is the only thing that reads the global generator.
            torch.manual_seed(hash_seed(self.plan.seed, self.step, micro, self.ranks.rank))
            loss, scalars = self.engine(self.prepare(batch))
            self.engine.backward(loss)
            _add(totals, {"loss": loss.detach(), **scalars})
            if micro == self.plan.accumulation - 1:
                values = self._average(totals, batch)
                norm = self._norm_before_step()
            self.engine.step()
        norm = self._norm_after_step() if norm is None else norm
        if not math.isfinite(norm):
            raise TrainingStoppedError(
                f"step {self.step}: the gradient norm is {norm}; training stopped, the last "
                f"checkpoint is intact; try a lower optim.learning_rate than {rate:.3g}"
            )
        self.step += 1
        self.ema.update(self.step)
        values = {f"train/{name}": value for name, value in values.items()}
        return values | {"train/grad_norm": norm, "train/learning_rate": rate}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The losses over the validation batches, which have fixed noise and masks."""
        self.engine.eval()
        totals: dict[str, Tensor] = {}
        weight = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        with evaluated(self.engine):
            for batch in self.valid:
                batch = self.prepare(batch.to(self.ranks.device))
                loss, scalars = self.engine(batch)
                size = len(batch.x)
                _add(totals, {"loss": size * loss, **{k: size * v for k, v in scalars.items()}})
                weight += batch.weight.double().sum()
        vector = torch.stack([*(v.double() for v in totals.values()), weight])
        *sums, count = sum_over_ranks(vector).tolist()
        return {f"valid/{name}": value / count for name, value in zip(totals, sums)}

    def save(self) -> None:
        """Writes a checkpoint. Collective.

        Raises:
            TrainingStoppedError: the ranks hold different weights.
        """
        if (name := first_difference(self.engine.module)) is not None:
            raise TrainingStoppedError(
                f"step {self.step}: the ranks hold different weights, first of {name}; this state "
                "was not saved, the last checkpoint is intact; the same command resumes from it"
            )
        state = {"step": self.step, "samples": self.step * self.plan.batch_size}
        state["loader"] = self.loader.state_dict()
        self.store.save(
            self.step,
            self.engine.module,
            self.fragments,
            torch_optimizer(self.engine),
            self.ema,
            state,
        )

    def _average(self, totals: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """Means over micro-batches and ranks; agrees on stopping; refuses a non-finite loss."""
        asked = torch.full((), float(bool(self.stop)), dtype=torch.float64, device=batch.x.device)
        vector = torch.stack([*(value.double() for value in totals.values()), asked])
        healthy = bool(torch.isfinite(vector[0]))
        sums = sum_over_ranks(vector) / (self.plan.accumulation * self.ranks.world_size)
        if not math.isfinite(sums[0].item()):
            windows = "" if healthy else f", its windows {batch.window.tolist()}"
            raise TrainingStoppedError(
                f"step {self.step}, rank {self.ranks.rank}{windows}: the loss is "
                f"{sums[0].item()}; training stopped before the weights changed, "
                "the last checkpoint is intact"
            )
        self.stopping = sums[-1].item() > 0
        return dict(zip(totals, sums.tolist()))

    def _norm_before_step(self) -> float | None:
        """Stage 0: the norm of the averaged gradients. DeepSpeed neither keeps nor checks it."""
        if self.engine.zero_optimization_stage():
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise TrainingStoppedError(
                f"step {self.step}: the gradient norm is {norm}; training stopped before the "
                "weights changed, the last checkpoint is intact"
            )
        return norm

    def _norm_after_step(self) -> float:
        """Stages 1 to 3: the norm DeepSpeed clipped by; it skips the step when it overflows."""
        if getattr(self.engine.optimizer, "overflow", False):
            return math.nan
        return float(self.engine.get_global_grad_norm())


class _Clock:
    """Samples per second between laps."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self, samples: int) -> dict[str, float]:
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return {"samples_per_second": samples / elapsed}


def _add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value
