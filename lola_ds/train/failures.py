"""What went wrong, in words that say what to do: no memory, no disk, a lost rank."""

from __future__ import annotations

import errno
from collections.abc import Callable

import torch
import torch.distributed as dist

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


def explained(error: Exception, run: str, advise: Callable[[], str]) -> Exception:
    """The error to raise in place of one that says what happened but not what to do.

    Arguments:
        error: raised while a training was built or ran.
        run: the run's folder.
        advise: says what would need less memory.

    Returns:
        A `ValueError` (no memory), an `OSError` (no disk), a `LostRankError`, or `error` itself.
    """
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)
    ):
        said = text.splitlines()[0][:200] if text else "host"
        return ValueError(f"out of memory ({said}){_taken_by_others()}; {advise()}")
    if isinstance(error, OSError) and (
        error.errno in _NO_DISK or any(f"[Errno {number}]" in text for number in _NO_DISK)
    ):
        return OSError(
            f"{text}: the disk of run={run} is full or its quota is spent; make room and "
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


def _taken_by_others() -> str:
    """What other processes have of the GPU's memory, where it is much; nothing otherwise."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    others = (total - free - torch.cuda.memory_reserved()) / 2**30
    if others < 2:  # a process's context and libraries take up to one
        return ""
    return f"; other processes have {others:.1f} of the GPU's {total / 2**30:.1f} GiB (nvidia-smi)"
