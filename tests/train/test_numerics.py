"""The switches of this process's arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from lola_ds.train.numerics import choose_precision, set_numerics


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32(tf32: bool) -> None:
    set_numerics(tf32=tf32, deterministic=False)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_deterministic() -> None:
    set_numerics(tf32=True, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(
    ("has", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"neon": True, "neon_bf16": True}, "bf16"),
    ],
)
def test_precision_is_what_the_processor_is_quick_at(
    has: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    device = torch.device("cpu")
    assert choose_precision("auto", device) == chosen
    for asked in ("fp32", "bf16", "fp16"):
        assert choose_precision(asked, device) == asked
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", device) == "fp32"
