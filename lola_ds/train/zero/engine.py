"""The DeepSpeed engine.

Parameters, gradients and optimizer states stay float32; bf16 is a matter of the modules'
arithmetic (autocast), which every ZeRO stage then treats alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lola_ds.train.zero.extensions import import_deepspeed
from lola_ds.train.zero.nvme_offload import Drive, move_to_drive, on_host

_functional: Any = torch.nn.functional
_linear = torch.nn.functional.linear


def make_engine(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    ds_config: dict[str, Any],
    whole: Sequence[type[nn.Module]] = (),
    drive: Drive | None = None,
) -> Any:
    """Wraps an objective whose parameters already hold their starting values.

    Arguments:
        objective: a module with `forward(batch) -> (loss, scalars)`, on its device.
        optimizer: over the objective's trainable parameters.
        ds_config: a complete DeepSpeed configuration.
        whole: kinds of modules of the objective whose parameters ZeRO-3 gathers together before
            they run, as compiled ones need: nothing is gathered within a graph.
        drive: where the states go, if the configuration offloads them to one (`open_drive`).

    Raises:
        ValueError: the drive is full.
    """
    deepspeed = import_deepspeed()
    if whole and ds_config["zero_optimization"]["stage"] == 3:
        deepspeed.utils.set_z3_leaf_modules(objective, list(whole))
    _functional.linear = _linear  # an engine before this one may have left another
    engine, *_ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=on_host(ds_config)
    )
    if drive is not None:
        weights = ds_config["zero_optimization"]["offload_param"]["device"] == "nvme"
        move_to_drive(engine.optimizer, drive, weights=weights)
    if _functional.linear is not _linear:
        _functional.linear = _by_rows(_functional.linear)
    return engine


def _by_rows(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """ZeRO-3's linear layer, which keeps no gathered weights, right under selective recomputation.

    Given more axes than two, DeepSpeed's adds the bias in place to the very product that selective
    checkpointing keeps, unseen by torch; the recomputed pass then adds it twice, and gradients are
    wrong without a word. Given rows, it adds the bias in the product itself.
    """

    def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return rows.view(*x.shape[:-1], rows.shape[-1])

    return by_rows
