"""Joining the process group of a training, through DeepSpeed."""

from __future__ import annotations

import os
import socket
import warnings

import torch
import torch.distributed as dist

from lola_ds.distributed import Ranks
from lola_ds.train.zero.extensions import import_deepspeed

__all__ = ["join_process_group"]

# DeepSpeed calls torch's collectives by their former names.
_DEPRECATION = r"`torch\.distributed\.\w+` is deprecated\. Please use"


def join_process_group(device: str = "auto") -> Ranks:
    """Joins the process group of the launcher, or makes one of a single process.

    Arguments:
        device: The kind of device to train on: `cpu`, `cuda`, or `auto` (a GPU if there is one).

    Returns:
        This process among its peers.

    Raises:
        ValueError: The device is `cuda` and no GPU is visible.
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


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
