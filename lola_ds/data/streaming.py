"""Windows from shards that arrive as a stream: object stores, pipes, anything webdataset opens.

Members are read one after the other through webdataset itself, each cut in its windows, which pass
a shuffle buffer. What a stream cannot promise: the order is shuffled within the buffer only;
windows that span two members of a trajectory cut along time do not occur; checksums, which are in
the index, are not compared; a state cannot be saved. A member is held in memory as a whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lola_ds.data.format import decode_frames

__all__ = ["stream_windows"]


def stream_windows(
    urls: str | Sequence[str | Path],
    length: int = 1,
    stride: int = 1,
    *,
    shuffle: int = 1000,
    seed: int = 0,
) -> Iterable[dict[str, Any]]:
    """Windows of shards in sequence; can be iterated again and again, with other orders.

        for window in stream_windows(sorted(folder.glob("*.tar")), length=5, stride=4):
            window["x"]                                                         # (C, L, *S)

    Arguments:
        urls: the shards, as webdataset takes them: paths, URLs, `pipe:` commands, or one string
            with a brace expansion. The order of several is shuffled too.
        length: L, number of frames.
        stride: s, steps between frames.
        shuffle: windows in the buffer; 0 keeps the shards' order.
        seed: fixes the order, pass by pass.

    Returns:
        An iterable of {"x": (C, L, *S) float32, "label": (D,), "key": str, "start": int}.

    Raises:
        ValueError: an argument is out of range.
    """
    from webdataset.compat import WebDataset
    from webdataset.filters import detshuffle, pipelinefilter

    if min(length, stride) < 1 or shuffle < 0:
        raise ValueError(f"length={length}, stride={stride}, shuffle={shuffle}: out of range")
    sources = urls if isinstance(urls, str) else [str(url) for url in urls]
    dataset = WebDataset(
        sources, shardshuffle=100 if shuffle else False, seed=seed, empty_check=False
    )

    def windows(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            yield from _cut(sample, length, stride)

    stages: list[Any] = [pipelinefilter(windows)()]
    if shuffle:
        stages.append(detshuffle(shuffle, max(1, shuffle // 2), seed=seed))
    return dataset.compose(*stages)


def _cut(sample: dict[str, Any], length: int, stride: int) -> Iterator[dict[str, Any]]:
    """All windows of a member, as it comes from the tar."""
    meta = json.loads(sample["meta.json"])
    frames = np.lib.format.read_array(io.BytesIO(sample["fields.npy"]))
    first = meta.get("frames", [0])[0]
    label = [*meta["scalars"].values(), *(c for codes in meta["boundary"].values() for c in codes)]
    for start in range(len(frames) - (length - 1) * stride):
        chosen = frames[start : start + (length - 1) * stride + 1 : stride]
        x = np.array(decode_frames(chosen, meta["dtype"]), np.float32, order="C")
        yield {
            "x": torch.from_numpy(x).transpose(0, 1),
            "label": torch.tensor(label, dtype=torch.float32),
            "key": meta.get("key", sample["__key__"]),
            "start": first + start,
        }
