"""Safetensors files, written and read against the library that defines them."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lola_ds.train.checkpoint.format import digest
from lola_ds.train.checkpoint.tensor_file import (
    LazyTensors,
    Spec,
    TensorFile,
    same_bits,
    write_tensors,
)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "transposed": torch.arange(6, dtype=torch.int64).view(2, 3).T,
        "nothing": torch.tensor([float("nan"), float("-inf")], dtype=torch.float64),
    }


def test_the_library_reads_what_is_written(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    assert write_tensors(path, tensors, {"key": "text"}) == digest(path)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"key": "text"}


def test_what_the_library_wrote_is_read(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"key": "text"})
    file = TensorFile(path)
    assert file.metadata == {"key": "text"}
    assert file.tensors().keys() == tensors.keys()
    assert all(same_bits(file.read(name), tensor) for name, tensor in tensors.items())
    run = torch.empty(20)
    file.read_run("matrix", 3, run)
    assert torch.equal(run, tensors["matrix"].view(-1)[3:23])
    with pytest.raises(ValueError, match=r"holds half in torch\.bfloat16, not torch\.float32"):
        file.read_run("half", 0, run)


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    """While one is written, the one before is gone."""
    memories: list[weakref.ref[np.ndarray]] = []

    def read(name: str) -> Tensor:
        assert not any(memory() is not None for memory in memories), name
        memory = np.ones(4, np.float32)
        memories.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    lazy = LazyTensors({name: Spec(torch.float32, (4,)) for name in "abc"}, read)
    write_tensors(tmp_path / "file.safetensors", lazy, {})
    assert torch.equal(load_file(tmp_path / "file.safetensors")["c"], torch.ones(4))


def test_files_that_are_none_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    for data in (b"", b"no header here", (2**40).to_bytes(8, "little") + b"{}", b"\2" + 7 * b"\0"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"file\.safetensors is not a safetensors file"):
            TensorFile(path)
    write_tensors(path, tensors, {})
    path.write_bytes(path.read_bytes()[:-3])
    file = TensorFile(path)
    with pytest.raises(ValueError, match=r"file\.safetensors ends within flags"):
        file.read("flags")


def test_bits_are_compared(tensors: dict[str, Tensor]) -> None:
    assert same_bits(tensors["nothing"], tensors["nothing"].clone())
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
