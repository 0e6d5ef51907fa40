"""The states of a ZeRO-3 training on a local drive: masters, Adam, averages, gradients, weights.

DeepSpeed's own way to NVMe keeps them in files that only its optimizer reads, so that averages,
checkpoints and guards could not. Here each tensor is the mapping of a file: whoever touches it has
its pages read, and the operating system writes changed ones when memory is short. DeepSpeed
offloads to the host as ever, to tensors that take its memory only while they are in use: the
optimizer's step goes through the parameters by sub-groups (`sub_group_size` elements), the next of
which is read ahead while one is stepped and the one before is written and let go. Gradients and
gathered weights are left to the operating system.

The files have no names: they are gone with the process, however it ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class _Mapping:
    """A file without a name, and its place in memory."""

    file: int
    memory: mmap.mmap

    def __del__(self) -> None:
        os.close(self.file)

    def let_go(self, start: int, size: int) -> None:
        """Writes the pages of a range that have changed, and frees the memory of all of them."""
        begin = start - start % _PAGE
        size += start - begin
        os.fdatasync(self.file)
        self.memory.madvise(mmap.MADV_DONTNEED, begin, size)
        os.posix_fadvise(self.file, begin, size, os.POSIX_FADV_DONTNEED)

    def read_ahead(self, start: int, size: int) -> None:
        """Begins to read a range."""
        os.posix_fadvise(self.file, start, size, os.POSIX_FADV_WILLNEED)


class NvmeStore:
    """Tensors in files of one folder, which take host memory only while they are in use.

    Arguments:
        folder: on a local drive.
        ahead: whether `fetch` reads in the background, or nothing is read before it is touched.
        behind: whether `release` writes in the background.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it cannot be written to.
    """

    def __init__(self, folder: str | Path, *, ahead: bool = True, behind: bool = True) -> None:
        self.folder = Path(folder)
        self.ahead = ahead
        self.behind = behind
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"deepspeed.nvme_path={folder} is no folder on this machine; make it, on a drive "
                "of its own, or use deepspeed=zero3_offload"
            )
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"deepspeed.nvme_path={folder} is not writable; choose a folder of yours"
            )
        self._mappings: dict[int, _Mapping] = {}
        self._reader = ThreadPoolExecutor(1, "drive-read")
        self._writer = ThreadPoolExecutor(1, "drive-write")
        self._writing: Future[None] | None = None

    def check_room(self, need: int) -> None:
        """Refuses a drive with less than `need` bytes free, before anything is written.

        Raises:
            ValueError: names what is needed and what there is.
        """
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise ValueError(
                f"deepspeed.nvme_path={self.folder} has {free / GIB:.1f} GiB free, but the states "
                f"of this machine's ranks take {need / GIB:.1f} GiB; free some, choose a larger "
                "drive, or share them among more ranks"
            )

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Zeros of the shape and type of a tensor, on the drive.

        Raises:
            ValueError: the drive is full. Nothing that is kept is lost to a drive that fills up
                later: the room of a file is its own from the start.
        """
        size = tensor.numel() * tensor.element_size()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                self.check_room(size)
                raise ValueError(f"deepspeed.nvme_path={self.folder} is full ({error})") from error
            mapping = _Mapping(os.dup(file.fileno()), mmap.mmap(file.fileno(), size))
        kept = torch.frombuffer(mapping.memory, dtype=tensor.dtype).view(tensor.shape)
        self._mappings[kept.data_ptr()] = mapping
        return kept

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, on the drive.

        Raises:
            ValueError: as `zeros_like`.
        """
        kept = self.zeros_like(tensor)
        kept.copy_(tensor.detach())
        self.put_away(kept)
        return kept

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on the drive."""
        return tensor.untyped_storage().data_ptr() in self._mappings

    def fetch(self, tensors: Iterable[Tensor]) -> None:
        """Begins to read tensors of the drive that will soon be used."""
        if self.ahead:
            for place in [self._place(tensor) for tensor in tensors]:
                self._reader.submit(_Mapping.read_ahead, *place)

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Begins to write tensors of the drive that are not used for a while.

        Waits for those that were released before: what waits to be written takes memory.

        Raises:
            OSError: the drive failed.
        """
        self.settle()
        places = [self._place(tensor) for tensor in tensors]
        self._writing = self._writer.submit(_let_go, places)
        if not self.behind:
            self.settle()

    def put_away(self, tensor: Tensor) -> None:
        """Writes a tensor of the drive, and frees its memory."""
        _let_go([self._place(tensor)])

    def settle(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: the drive failed.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _place(self, tensor: Tensor) -> tuple[_Mapping, int, int]:
        size = tensor.element_size()
        mapping = self._mappings[tensor.untyped_storage().data_ptr()]
        return mapping, int(tensor.storage_offset()) * size, tensor.numel() * size


def _let_go(places: Sequence[tuple[_Mapping, int, int]]) -> None:
    for mapping, start, size in places:
        mapping.let_go(start, size)


def open_nvme_store(ds_config: Mapping[str, Any]) -> NvmeStore | None:
    """The drive of a complete DeepSpeed configuration, if it offloads to one.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it cannot be written to.
    """
    section = ds_config["zero_optimization"].get("offload_optimizer", {"device": "none"})
    if section["device"] != "nvme":
        return None
    return NvmeStore(
        section["nvme_path"], ahead=section["pipeline_read"], behind=section["pipeline_write"]
    )


def nvme_bytes(parameters: int, zero: Mapping[str, Any], world_size: int, averages: int) -> int:
    """What a rank keeps on a drive: masters, gradients, Adam's moments, averages, and weights.

    Arguments:
        parameters: their number.
        zero: the `zero_optimization` section of a complete DeepSpeed configuration.
        world_size: the number of ranks.
        averages: moving averages of the weights.
    """
    copies = {"offload_optimizer": 4 + averages, "offload_param": 1}
    moved = (n for key, n in copies.items() if zero.get(key, {}).get("device") == "nvme")
    return -(-4 * parameters // world_size) * sum(moved)


def on_host(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as DeepSpeed gets it: what lies on a drive is host memory to it."""
    zero = {
        key: {"device": "cpu", "pin_memory": False}
        if isinstance(value, dict) and value.get("device") == "nvme"
        else value
        for key, value in ds_config["zero_optimization"].items()
    }
    return {**ds_config, "zero_optimization": zero}


def move_to_nvme(zero: Any, nvme: NvmeStore, *, weights: bool) -> None:
    """Moves what a ZeRO-3 optimizer keeps in host memory to a drive.

    Arguments:
        zero: DeepSpeed's optimizer of stage 3, its states offloaded to the host.
        nvme: where to.
        weights: whether the weights that the ranks gather are moved, too.
    """
    flats = zero.fp32_partitioned_groups_flat
    # Two copies of the gradients to DeepSpeed: accumulated, and of the last micro-batch. The
    # second is made from the first when all are in, element by element; so they can be one.
    gradients = nvme.keep(zero.grad_partitions_flat_buffer)
    partitions = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
    for key, part in partitions.items():
        partitions[key] = gradients.narrow(0, part.storage_offset(), part.numel())
    zero.grad_partitions_flat_buffer = gradients
    begin = 0
    for i, flat in enumerate(flats):
        flat.data = nvme.keep(flat.data)
        flat.grad = gradients.narrow(0, begin, flat.numel())
        begin += flat.numel()
        if weights:
            zero.fp16_partitioned_groups_flat[i] = nvme.keep(zero.fp16_partitioned_groups_flat[i])
            zero._unflatten_partitioned_parameters(i)  # points the parameters' parts there
    if weights:
        zero.param_groups_fp16_flat_cpu_memory.clear()
    turns = _Turns(flats, nvme)
    zero.optimizer.register_step_pre_hook(turns.before)
    zero.optimizer.register_step_post_hook(turns.after)


class _Turns:
    """Reads and writes the states around the optimizer's step of each sub-group.

    Arguments:
        flats: the master weights of each sub-group, in the order of their steps.
        nvme: where they and their states lie.
    """

    def __init__(self, flats: Sequence[Tensor], nvme: NvmeStore) -> None:
        self.nvme = nvme
        self.following = {id(flat): after for flat, after in zip(flats, [*flats[1:], None])}
        self.leading = {id(flat): before for flat, before in zip(flats, [None, *flats])}

    def before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Reads the next sub-group ahead."""
        after = self.following[id(_stepped(optimizer))]
        if after is not None:
            self.nvme.fetch([after, *self._moments(optimizer, after)])

    def after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Writes the moments, and the masters of the sub-group before.

        DeepSpeed still copies this one's masters to the weights; the moving averages, which read
        them last, release those of the last sub-group.
        """
        flat, state = _stepped(optimizer), optimizer.state
        for key, value in state[flat].items():  # made by the optimizer, in memory, at its first
            alike = isinstance(value, Tensor) and value.shape == flat.shape
            if alike and not self.nvme.holds(value):
                state[flat][key] = self.nvme.keep(value)
        before = self.leading[id(flat)]
        masters = [] if before is None else [before]
        self.nvme.release([*self._moments(optimizer, flat), *masters])

    def _moments(self, optimizer: torch.optim.Optimizer, flat: Tensor) -> list[Tensor]:
        state = optimizer.state.get(flat, {}).values()
        return [v for v in state if isinstance(v, Tensor) and self.nvme.holds(v)]


def _stepped(optimizer: torch.optim.Optimizer) -> Tensor:
    """The one tensor of a sub-group that DeepSpeed gives the optimizer at a time."""
    (flat,) = (p for group in optimizer.param_groups for p in group["params"])
    return flat
