"""Settings that must stand before torch and Triton are imported.

One thread a process: as many processes run as there are cores, and OpenMP's threads wait for each
other in busy loops, which makes small tensors many times slower once cores are shared. Where there
is no GPU, Triton's kernels run in its interpreter.
"""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # a GPU's deterministic products

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs run as they were traced, forward and backward; no machine code is made."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
