"""Safetensors files, written and read one tensor at a time.

The format [1]_: the length of a JSON header in eight bytes; the header, name -> dtype, shape and
range of bytes; the bytes. The `safetensors` library maps a whole file into memory and gathers all
tensors before it writes them. Here a file is written tensor after tensor, hashed on the way, and
read run by run.

References:
    .. [1] Safetensors
       https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["LazyTensors", "Spec", "TensorFile", "as_bytes", "same_bits", "write_tensors"]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Spec:
    """A tensor's type and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return self.numel * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """Returns the spec of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each of which is read when it is accessed.

    Arguments:
        specs: The types and shapes by name.
        read: Returns the tensor of a name.
    """

    def __init__(self, specs: Mapping[str, Spec], read: Callable[[str], Tensor]) -> None:
        self.specs = dict(specs)
        self._read = read

    @classmethod
    def wrap(cls, tensors: Mapping[str, Tensor]) -> LazyTensors:
        """Returns tensors as `LazyTensors`."""
        if isinstance(tensors, cls):
            return tensors
        return cls({name: Spec.of(t) for name, t in tensors.items()}, tensors.__getitem__)

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Writes a safetensors file and flushes it to the disk.

    Arguments:
        path: The file, which is overwritten if it exists.
        tensors: The tensors by name, accessed one at a time.
        metadata: The metadata of the header.

    Returns:
        Size and XXH3-64 of the file, as `digest`.
    """
    tensors = LazyTensors.wrap(tensors)
    # Wide types first, so that every tensor begins at a multiple of its item's size.
    specs = sorted(tensors.specs.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, spec in specs:
        begin, end = end, end + spec.nbytes
        entry = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    from lola_ds.data.native import XXH3  # reading needs no checksums

    hasher = XXH3()
    with path.open("wb", buffering=0) as file:

        def put(data: memoryview) -> None:
            hasher.update(data)
            while data:
                data = data[file.write(data) :]

        put(memoryview(head))
        for name, _ in specs:
            put(_bytes(tensors[name]))
        os.fsync(file.fileno())
    return {"bytes": len(head) + end, "xxh3": hasher.hexdigest()}


class TensorFile:
    """Reads a safetensors file.

    Arguments:
        path: the file. It is open only while something is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a safetensors file, or ends early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                if length > path.stat().st_size:
                    raise ValueError("it ends within its header")
                header: dict[str, Any] = json.loads(file.read(length))
                self.metadata: dict[str, str] = header.pop("__metadata__", {})
                self.specs = {
                    name: Spec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
                    for name, entry in header.items()
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is not a safetensors file: {error}") from error
        self._begins = {n: 8 + length + e["data_offsets"][0] for n, e in header.items()}

    def read(self, name: str) -> Tensor:
        """Reads a tensor."""
        spec = self.specs[name]
        out = torch.empty(spec.numel, dtype=spec.dtype)
        self.read_run(name, 0, out)
        return out.view(spec.shape)

    def read_run(self, name: str, start: int, out: Tensor) -> None:
        """Reads a part of a flattened tensor.

        Arguments:
            name: The name of the tensor.
            start: The first element.
            out: The memory to fill, with shape (n,) and the tensor's dtype.

        Raises:
            ValueError: The dtypes differ, or the file ends early.
        """
        spec = self.specs[name]
        if out.dtype != spec.dtype:
            raise ValueError(f"{self.path} holds {name} in {spec.dtype}, not {out.dtype}")
        rest = _bytes(out)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._begins[name] + start * spec.dtype.itemsize)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise ValueError(f"{self.path} ends within {name}")
                rest = rest[count:]

    def tensors(self) -> LazyTensors:
        """Returns all tensors, read one at a time."""
        return LazyTensors(self.specs, self.read)


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Returns whether two tensors have the same dtype, shape and bits; NaN equals itself."""
    return Spec.of(one) == Spec.of(two) and torch.equal(as_bytes(one), as_bytes(two))


def as_bytes(tensor: Tensor) -> Tensor:
    """Returns the bytes of a tensor, flat; not copied if it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, not copied if it is contiguous."""
    return as_bytes(tensor).numpy().data
