"""Tensors on a drive: the same values, no memory, nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.checkpoint.tensor_file import TensorFile
from lola_ds.train.checkpoint.training_state import Content
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import Exponential, PowerLaw
from lola_ds.train.zero.nvme_offload import GIB, NvmeStore, nvme_bytes, on_host, open_nvme_store
from lola_ds.train.zero.partitions import Partition

MANY = 1 << 24  # 64 MiB
NVME = {"device": "nvme", "nvme_path": "/d", "pipeline_read": True, "pipeline_write": True}


def mapped() -> int:
    """MiB of files that this process has in memory."""
    (line,) = re.findall(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) // 1024


@pytest.mark.parametrize("put_away", [NvmeStore.put_away, lambda nvme, x: nvme.release([x])])
def test_memory_is_taken_while_in_use_only(
    put_away: Callable[[NvmeStore, Tensor], None], tmp_path: Path
) -> None:
    nvme, x = NvmeStore(tmp_path), torch.rand(MANY)
    kept, before = nvme.keep(x), mapped()
    assert nvme.holds(kept[3:])
    assert not nvme.holds(x)
    nvme.fetch([kept])
    assert torch.equal(kept, x)
    kept.add_(1)
    assert 60 < mapped() - before < 72
    put_away(nvme, kept)
    nvme.settle()
    assert mapped() - before < 8
    assert torch.equal(kept, x + 1)
    half = kept[MANY // 2 :]
    put_away(nvme, half)
    nvme.settle()
    assert 28 < mapped() - before < 40
    assert torch.equal(half, x[MANY // 2 :] + 1)
    assert not list(tmp_path.iterdir())


def test_folder_must_be_there_and_have_room(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"deepspeed.nvme_path=.*none is no folder"):
        NvmeStore(tmp_path / "none")
    nvme = NvmeStore(tmp_path)
    nvme.check_room(1)
    with pytest.raises(ValueError, match=r"GiB free, but the states .* take 1048576.0 GiB; free"):
        nvme.check_room(2**20 * GIB)
    with pytest.raises(ValueError, match=r"GiB free, but the states of this machine's ranks take"):
        nvme.zeros_like(torch.empty(1).expand(2**46))


def test_sections_say_what_lies_where() -> None:
    zero = {"stage": 3, "offload_optimizer": NVME, "offload_param": {"device": "cpu"}}
    assert nvme_bytes(10, zero, 4, averages=2) == 10 * 6
    assert nvme_bytes(10, zero | {"offload_param": NVME}, 4, averages=2) == 10 * 7
    assert nvme_bytes(10, {"stage": 0}, 4, averages=2) == 0
    given = on_host({"a": 1, "zero_optimization": zero})
    assert given["a"] == 1
    assert given["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "cpu"},
    }
    assert open_nvme_store(given) is None


def test_averages_on_a_drive_are_those_in_memory(tmp_path: Path) -> None:
    nvme, profiles = NvmeStore(tmp_path, behind=False), [Exponential(0.9), PowerLaw(0.1)]
    flats = [torch.rand(1000), torch.rand(300)]
    places = [(0, 0, 600), (0, 600, 400), (1, 0, 250)]  # the second ends with padding

    def partitions(tensors: list[Tensor]) -> list[Partition]:
        return [Partition(f"p{a}", (n,), 0, n, tensors[i], a) for i, a, n in places]

    kept = [nvme.keep(flat) for flat in flats]
    here, there = Ema(partitions(flats), profiles), Ema(partitions(kept), profiles, nvme)
    for step in range(1, 4):
        for flat, other in zip(flats, kept):
            other.copy_(flat.mul_(1.1))
        here.update(step)
        there.update(step)
    for some, others in zip(here.values, there.values):
        for value, other in zip(some, others):
            assert torch.equal(value, other)
            assert nvme.holds(other)


def test_checkpoint_is_written_from_the_drive(tmp_path: Path) -> None:
    """All of it, with a part of it in memory; what is not there is copied before `save` returns."""
    nvme = NvmeStore(tmp_path)
    kept, here = nvme.keep(torch.rand(MANY)), torch.ones(3)
    store = CheckpointStore(tmp_path / "checkpoints", nvme=nvme)
    parts = {f"weight/{i}": part for i, part in enumerate(kept.split(MANY // 16))}
    write = store._files.begin(tmp_path, {"x": Content({**parts, "buffer/b": here}, {})})
    here.zero_()
    before = mapped()
    write()
    assert mapped() - before < 16
    file = TensorFile(tmp_path / "x")
    assert torch.equal(torch.cat([file.read(key) for key in parts]), kept)
    assert torch.equal(file.read("buffer/b"), torch.ones(3))
