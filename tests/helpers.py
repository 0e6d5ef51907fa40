"""Small inputs, and weights that hide nothing, for several tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lola_ds.data import Index, ShardWriter


def make_meta(
    folder: Path, i: int, shape: Sequence[int], ranks: Sequence[int] = (0, 1), **changes: Any
) -> dict[str, Any]:
    """Metadata of trajectory `i` for an array of `shape` (T, C, *S)."""
    axes = "xyz"[: len(shape) - 2]
    names = ("density", "momentum", "stress")
    meta = {
        "dataset": folder.parent.name,
        "split": folder.name,
        "source": f"made-{i}.hdf5",
        "trajectory": i,
        "scalars": {"gamma": 1.4 + i / 10},
        "boundary": {axis: [2, 2] for axis in axes},
        "time": {"start": 0.0, "step": 0.015, "size": shape[0]},
        "space": {
            axis: {"start": 0.0, "step": 1 / size, "size": size}
            for axis, size in zip(axes, shape[2:])
        },
        "fields": [{"name": names[rank], "rank": rank} for rank in ranks],
    }
    return {**meta, **changes}


def make_shards(
    folder: str | Path,
    arrays: np.ndarray | Sequence[np.ndarray] | None = None,
    *,
    ranks: Sequence[int] | None = None,
    meta: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Index:
    """Writes a small split of shards.

    Arguments:
        folder: the split's folder, `…/<dataset>/<split>`.
        arrays: one (T, C, *S) array per trajectory; by default 3 of standard normal numbers with
            T = 12, C = 3 (a scalar and a vector), 8 × 8.
        ranks: tensor ranks of the fields, which must add up to C; by default scalars and, where C
            allows, one vector at the end (latents: scalars only).
        meta: entries that replace the default metadata of every trajectory.
        seed: of the default arrays.
        options: for `ShardWriter`.
    """
    folder = Path(folder)
    if arrays is None:
        arrays = np.random.default_rng(seed).standard_normal((3, 12, 3, 8, 8))
    arrays = [np.asarray(array, np.float32) for array in arrays]
    channels, dims = arrays[0].shape[1], arrays[0].ndim - 2
    if ranks is None:
        vector = options.get("kind") != "latents" and channels > dims
        ranks = (0,) * (channels - dims) + (1,) if vector else (0,) * channels
    fields = [{"name": f"field{i}", "rank": rank} for i, rank in enumerate(ranks)]
    writer = ShardWriter(folder, **options)
    for i, array in enumerate(arrays):
        entries = make_meta(folder, i, array.shape, ranks, fields=fields, **(meta or {}))
        writer.add(f"made-{i:04d}", array, entries)
    return writer.finish()


def randomize(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Draws all parameters anew, so that nothing hides behind a small initial scale."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn_like(p))
    return module


def assert_same(
    y: Tensor, expected: Tensor, inputs: Sequence[Tensor], rtol: float = 1e-6, atol: float = 1e-7
) -> None:
    """Asserts that two values are equal, and so are their gradients with respect to `inputs`."""
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
    weights = torch.randn_like(y)
    grads = torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs, retain_graph=True)
    torch.testing.assert_close(grads, expected_grads, rtol=rtol, atol=atol)


def watch_blocks(kind: type[nn.Module], *networks: nn.Module) -> list[bool]:
    """Filled as networks run: whether each block of a kind was given channels-last fields."""
    stored: list[bool] = []
    for network in networks:
        for block in network.modules():
            if isinstance(block, kind):
                block.register_forward_pre_hook(
                    lambda _, given: stored.append(given[0].movedim(1, -1).is_contiguous())
                )
    return stored
