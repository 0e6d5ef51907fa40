"""The DeepSpeed engine and the process group it runs in.

Parameters, gradients and optimizer states stay float32; bf16 is a matter of the modules'
arithmetic (autocast), which every ZeRO stage then treats alike.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lola_ds.train.zero.extensions import import_deepspeed
from lola_ds.train.zero.nvme_offload import Drive, move_to_drive, on_host

_functional: Any = torch.nn.functional
_linear = torch.nn.functional.linear


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


# DeepSpeed calls torch's collectives by the names they had before.
_DEPRECATION = r"`torch\.distributed\.\w+` is deprecated\. Please use"


def join(device: str = "auto") -> Ranks:
    """Joins the process group of the launcher, or makes one of a single process.

    Arguments:
        device: `cpu`, `cuda`, or `auto` (a GPU when there is one).

    Raises:
        ValueError: `cuda` was asked for and there is no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda but no GPU is visible; use device=auto or device=cpu")
    warnings.filterwarnings("ignore", message=_DEPRECATION, category=FutureWarning)
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": _free_port()}
        os.environ.update({key: str(value) for key, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    import_deepspeed().init_distributed(
        dist_backend="nccl" if where.type == "cuda" else "gloo", verbose=False
    )
    return Ranks(dist.get_rank(), local_rank, dist.get_world_size(), where)


def leave() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def set_numerics(*, tf32: bool, deterministic: bool) -> None:
    """How this process computes from now on.

    Arguments:
        tf32: multiply and convolve float32 matrices in TensorFloat-32 (10 bits of mantissa) where
            a GPU can.
        deterministic: take kernels that give the same bits at every run.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # would choose kernels by measuring them
    if deterministic:  # cuBLAS reads the variable when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # It would fill ZeRO's buckets at every step. (torch defines it where types do not show.)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010


def choose_precision(precision: str, device: torch.device) -> str:
    """What `auto` stands for on a device: `bf16` if it multiplies bfloat16 itself, else `fp32`.

    A CPU that does not is up to a hundred times slower at it than at float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
        able = any(has[name] for name in has if name.endswith("bf16"))
    return "bf16" if able else "fp32"


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


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(value: Any) -> list[Any]:
    """A small object of every rank, by rank. Collective."""
    values = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def first_difference(module: nn.Module) -> str | None:
    """The first float32 parameter whose bits differ between ranks, or None. Collective."""
    named = list(module.named_parameters())
    sums = [p.detach().view(torch.int32).sum(dtype=torch.int64) for _, p in named]
    extremes = torch.stack([*sums, *(-value for value in sums)])  # the largest, minus the smallest
    if dist.get_world_size() > 1:
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    differ = (extremes[: len(named)] + extremes[len(named) :]).tolist()
    return next((name for (name, _), value in zip(named, differ) if value), None)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
