"""What went wrong, in words that say what to do: no memory, no disk, a lost rank."""

from __future__ import annotations

import errno
from typing import Any

import torch
import torch.distributed as dist

from ..config import TASKS

_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_COMPANY = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "Socket Timeout",
    "Timed out waiting",
    "recvValue failed",
)


class LostRankError(RuntimeError):
    """Another rank is gone, so this one cannot go on."""


def explained(error: Exception, config: dict[str, Any], ds_config: dict[str, Any]) -> Exception:
    """The error to raise in place of one that says what happened but not what to do.

    Arguments:
        error: raised while a training was built or ran.
        config: the composed configuration.
        ds_config: the complete DeepSpeed configuration.

    Returns:
        A `ValueError` (no memory), an `OSError` (no disk), a `LostRankError`, or `error` itself.
    """
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)
    ):
        return ValueError(
            f"out of memory ({text.splitlines()[0][:200] if text else 'host'}); "
            f"{' or '.join(_savings(config, ds_config))}; `lola-ds plan` with the same words says "
            "what fits before it starts"
        )
    if isinstance(error, OSError) and (
        error.errno in _NO_DISK or any(f"[Errno {number}]" in text for number in _NO_DISK)
    ):
        return OSError(
            f"{text}: the disk of run={config['run']} is full or its quota is spent; make room and "
            "start the same command again, which resumes from the last complete checkpoint"
        )
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _NO_COMPANY)
    ):
        return LostRankError(
            f"another rank is gone ({text.splitlines()[0][:200]}); its own log says why; the same "
            "command resumes from the last complete checkpoint"
        )
    return error


def _savings(config: dict[str, Any], ds_config: dict[str, Any]) -> list[str]:
    """The words that would save most memory, those in use left out."""
    words = []
    if ds_config["train_micro_batch_size_per_gpu"] > 1:
        words.append(f"train.accumulation={2 * config['train']['accumulation']}")
    group = TASKS[config["task"]]
    if config[group].get("checkpointing") not in ("full", "offload", True):
        words.append(f"{group}.checkpointing=full")
    zero = ds_config["zero_optimization"]
    if config["optim"]["optimizer"] == "adamw":
        if zero["stage"] < 3:
            words.append("deepspeed=zero3 on more GPUs")
        if zero.get("offload_param", {"device": "none"})["device"] == "none":
            words.append("deepspeed=zero3_offload")
    return [f"try {word}" for word in words] or ["choose a smaller network or larger GPUs"]
