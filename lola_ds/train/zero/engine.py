"""An objective under DeepSpeed, with one interface for every ZeRO stage.

Parameters, gradients and optimizer states stay float32. Reduced precision is left to autocast in
the modules, so that every ZeRO stage treats it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lola_ds.train.optim.owner_sharded import OwnerShardedOptimizer
from lola_ds.train.zero.extensions import import_deepspeed
from lola_ds.train.zero.nvme_offload import NvmeStore, move_to_nvme, on_host
from lola_ds.train.zero.partitions import Partition, find_partitions

__all__ = ["Engine"]

_functional: Any = torch.nn.functional
_linear = torch.nn.functional.linear


class Engine:
    """DeepSpeed's engine around an objective whose parameters already hold their starting values.

    All that the training loop and the checkpoints need of DeepSpeed is here.

    Arguments:
        objective: A module with `forward(batch) -> (loss, scalars)`, on its device.
        optimizer: The optimizer of the objective's trainable parameters.
        ds_config: A complete DeepSpeed configuration.
        gathered: Classes of modules whose parameters ZeRO-3 gathers together before they run.
            Compiled modules need this, since nothing is gathered within a graph.
        nvme: Where the states are kept, if they are offloaded to NVMe (`open_nvme_store`).

    Raises:
        ValueError: The drive is full.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        ds_config: dict[str, Any],
        gathered: Sequence[type[nn.Module]] = (),
        nvme: NvmeStore | None = None,
    ) -> None:
        deepspeed = import_deepspeed()
        if gathered and ds_config["zero_optimization"]["stage"] == 3:
            deepspeed.utils.set_z3_leaf_modules(objective, list(gathered))
        _functional.linear = _linear  # an earlier engine may have replaced it
        engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=on_host(ds_config)
        )
        if nvme is not None:
            weights = ds_config["zero_optimization"]["offload_param"]["device"] == "nvme"
            move_to_nvme(engine.optimizer, nvme, weights=weights)
        if _functional.linear is not _linear:
            _functional.linear = _flatten_rows(_functional.linear)
        self.module = objective
        self.stage: int = engine.zero_optimization_stage()
        self.optimizer: torch.optim.Optimizer = (
            engine.optimizer.optimizer if self.stage else engine.optimizer
        )
        self._engine = engine

    def __call__(self, batch: Any) -> Any:
        """Returns the objective's loss and scalars of a batch."""
        return self._engine(batch)

    def train(self, mode: bool = True) -> None:
        """Sets the modules to training, or to evaluation."""
        self._engine.train(mode)

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, scale: float | None = None) -> None:
        """Adds up the gradients of a micro-batch.

        Arguments:
            loss: The loss, a scalar.
            scale: The factor of the loss, for float16. ZeRO divides the gradients by itself; at
                stage 0 `unscale` must follow the last micro-batch.
        """
        if scale is not None and self.stage:
            self._engine.optimizer.override_loss_scale(scale)
        elif scale is not None:
            loss = loss * scale
        self._engine.backward(loss)

    def unscale(self, scale: float) -> None:
        """Divides the gradients of stage 0 by the scale of the loss."""
        if self.stage == 0:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / scale)

    def squared_norm(self) -> Tensor:
        """Computes this rank's term of the squared norm of the averaged gradient.

        To be called between the last `backward` of a step and `step`.

        Returns:
            A float64 scalar; the terms of all ranks add up to the squared norm.
        """
        optimizer, ranks = self._engine.optimizer, 1
        if self.stage == 0:  # the same gradients on every rank
            norms = _norms(p.grad for p in self.module.parameters())
            ranks = dist.get_world_size()
        elif self._engine.zero_use_cpu_optimizer():  # computed before the gradients were offloaded
            norms = list(optimizer.norm_for_param_grads.values())
        else:
            groups = optimizer.averaged_gradients.values()
            norms = _norms(gradient for group in groups for gradient in group or ())
        if not norms:
            return torch.zeros((), dtype=torch.float64, device=self._engine.device)
        return torch.stack(norms).double().square().sum() / ranks

    def step(self) -> None:
        """Ends a micro-batch; after the last one of a step, updates the weights."""
        self._engine.step()

    def skip_step(self) -> None:
        """Ends a step as `step` does, but changes neither weights nor optimizer states."""
        attributes = vars(self.optimizer)
        attributes["step"] = lambda *_, **__: None  # hides the method of the class
        try:
            self._engine.step()
        finally:
            del attributes["step"]

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within, the module holds the weights to evaluate, if training uses others."""
        if isinstance(self.optimizer, OwnerShardedOptimizer):
            with self.optimizer.evaluated():
                yield
        else:
            yield

    def local_partitions(self) -> list[Partition]:
        """Returns the partitions that this rank averages and saves, in the order of the module.

        At stage 0, every rank holds all parameters. It then answers for an equal part of each, or
        for the parameters that it owns (owner-sharded optimizers).
        """
        return find_partitions(self._engine, dist.get_rank(), dist.get_world_size())

    def resident_partitions(self) -> list[Partition]:
        """Returns the partitions whose optimizer state this rank holds, also replicated ones."""
        if self.stage == 0:
            return find_partitions(self._engine, 0, 1)
        return self.local_partitions()


def _norms(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    present = [gradient for gradient in gradients if gradient is not None]
    return list(torch._foreach_norm(present)) if present else []


def _flatten_rows(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes ZeRO-3's memory-efficient linear layer correct under selective checkpointing.

    Given an input of more than two axes, DeepSpeed's layer adds the bias in place to the product
    that selective checkpointing saves, unseen by torch. The recomputed pass would add it once more,
    and the gradients would be wrong. Given a matrix, it adds the bias within the product.
    """

    def flat_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return rows.view(*x.shape[:-1], rows.shape[-1])

    return flat_linear
