"""Errors of torch and the system become ones that say what to do."""

from __future__ import annotations

import errno

import pytest
import torch
import torch.distributed as dist

from lola_ds.train.failures import LostRankError, explained


def tell(error: Exception) -> Exception:
    return explained(error, "RUN", lambda: "take deepspeed=zero3")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_no_memory(error: Exception) -> None:
    told = tell(error)
    assert isinstance(told, ValueError)
    first = str(error).splitlines()[0] if str(error) else "host"
    assert str(told) == f"out of memory ({first}); take deepspeed=zero3"


@pytest.mark.parametrize(("others", "named"), [(0.8, False), (61.5, True)])
def test_memory_that_other_processes_have_is_named(
    monkeypatch: pytest.MonkeyPatch, others: float, named: bool
) -> None:
    """Of 80 GiB, 10 are this process's own: no setting of its run gives back the rest."""
    total, own = 80 * 2**30, 10 * 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free = total - own - int(others * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: own)
    told = str(tell(torch.OutOfMemoryError("CUDA out of memory.")))
    words = "; other processes have 61.5 of the GPU's 80.0 GiB (nvidia-smi); take deepspeed=zero3"
    assert told.endswith(words) == named
    assert ("other processes" in told) == named


def test_no_disk() -> None:
    told = tell(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(told, OSError)
    assert "the disk of run=RUN is full" in str(told)


@pytest.mark.parametrize(
    "error", [dist.DistBackendError("timeout"), RuntimeError("x: Connection closed by peer")]
)
def test_lost_ranks(error: Exception) -> None:
    assert isinstance(tell(error), LostRankError)


@pytest.mark.parametrize(
    "error", [ValueError("shapes differ"), RuntimeError("index"), FileNotFoundError(2, "none")]
)
def test_other_errors_stay(error: Exception) -> None:
    assert tell(error) is error
