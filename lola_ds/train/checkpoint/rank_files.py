"""Writing the files of a rank on a thread, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lola_ds.train.checkpoint.tensor_file import LazyTensors, Spec, as_bytes, write_tensors
from lola_ds.train.checkpoint.training_state import Content
from lola_ds.train.zero.nvme_offload import NvmeStore

__all__ = ["HostCopies", "OffloadedTensors"]


class HostCopies:
    """Copies tensors to memory of the host, which is kept from one save to the next.

    Copies from a GPU run on a stream of their own, into pinned memory.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._read_all = Event()
        self._read_all.set()

    def begin(self, staging: Path, contents: Mapping[str, Content]) -> Callable[[], dict[str, Any]]:
        """Returns a function that copies and writes the files, for a thread to call."""
        self._read_all.clear()
        stream = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())

        def write() -> dict[str, Any]:
            try:
                with nullcontext() if stream is None else torch.cuda.stream(stream):
                    copies = {name: self._copy(content) for name, content in contents.items()}
                if stream is not None:
                    stream.synchronize()
            finally:
                self._read_all.set()
            return write_files(staging, copies)

        return write

    @torch.no_grad()
    def _copy(self, content: Content) -> Content:
        for key, tensor in content.tensors.items():
            copy = self._copies.get(key)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[key] = copy
            if tensor.is_cuda:
                copy.copy_(tensor, non_blocking=True)
            else:  # torch's OpenMP would start a second team here, which slows the first for good
                np.copyto(as_bytes(copy).numpy(), as_bytes(tensor).numpy())
        return Content({key: self._copies[key] for key in content.tensors}, content.metadata)

    def wait_until_read(self) -> None:
        """Waits until all tensors are copied."""
        self._read_all.wait()


class OffloadedTensors:
    """Writes offloaded tensors from their drive, one at a time in memory of the host.

    Arguments:
        nvme: The drive.
    """

    def __init__(self, nvme: NvmeStore) -> None:
        self.nvme = nvme
        self._read_all = Event()
        self._read_all.set()

    def begin(self, staging: Path, contents: Mapping[str, Content]) -> Callable[[], dict[str, Any]]:
        """Returns a function that writes the files, for a thread to call.

        Tensors that are not on the drive are small, and copied now.
        """
        self._read_all.clear()
        lazy = {name: self._lazy(content) for name, content in contents.items()}

        def write() -> dict[str, Any]:
            try:
                return write_files(staging, lazy)
            finally:
                self._read_all.set()

        return write

    def _lazy(self, content: Content) -> Content:
        tensors = {
            key: tensor if self.nvme.holds(tensor) else tensor.detach().cpu().clone()
            for key, tensor in content.tensors.items()
        }
        shown: list[Tensor] = []

        def show(key: str) -> Tensor:
            if shown and self.nvme.holds(shown[-1]):
                self.nvme.put_away(shown.pop())
            shown.append(tensors[key])
            return tensors[key]

        specs = {key: Spec.of(tensor) for key, tensor in tensors.items()}
        return Content(LazyTensors(specs, show), content.metadata)

    def wait_until_read(self) -> None:
        """Waits until all tensors are written."""
        self._read_all.wait()


def write_files(staging: Path, contents: Mapping[str, Content]) -> dict[str, Any]:
    """Writes the files of a rank and returns their digests."""
    return {
        name: write_tensors(staging / name, content.tensors, content.metadata)
        for name, content in contents.items()
    }
