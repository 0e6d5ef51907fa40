"""The climatology: what the training split looks like on average, as a forecast.

The mean over time and trajectories of every field in every cell. Once the flow has forgotten where
it started, no forecast of a single state has a smaller expected squared error.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lola_ds.atomic_io import write_atomic
from lola_ds.data import ShardDataset
from lola_ds.data.native import XXH3
from lola_ds.evaluate.tables import evenly

__all__ = ["climatology", "dataset_digest"]

FRAMES = 2048  # frames of the training split, spread evenly over it, that are averaged at most


def climatology(
    dataset: ShardDataset, cache: Path, frames: int = FRAMES, progress: bool = True
) -> Tensor:
    """The mean state of a split, (C, *S) float32, physical units.

    Arguments:
        dataset: physical trajectories, those of the training split.
        cache: a file that holds the result for this dataset and number of frames; made if it does
            not, or holds another's.
        frames: how many frames are averaged at most, spread evenly over trajectories and time.
        progress: whether to show a progress bar with the time left.
    """
    key = f"{dataset_digest(dataset)}-{frames}"
    found = _load(cache, key)
    if found is None:
        found = _mean(dataset, frames, progress)
        buffer = io.BytesIO()
        np.savez(buffer, mean=found, key=np.array(key))
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, buffer.getvalue())
    return torch.from_numpy(found.astype(np.float32))


def dataset_digest(dataset: ShardDataset) -> str:
    """A hash of every value of a dataset, from the checksums in its index."""
    digest = XXH3()
    for index in dataset.indexes:
        digest.update(np.ascontiguousarray(index.checksums).tobytes())
    return digest.hexdigest()


def _mean(dataset: ShardDataset, frames: int, progress: bool) -> np.ndarray:
    """The mean in float64, one frame in memory at a time."""
    total, count = np.zeros(dataset.shape), 0
    chosen = evenly(dataset.trajectories, frames)
    each = max(1, frames // len(chosen))
    for i in tqdm(chosen, desc="climatology", unit="trajectory", disable=not progress):
        for t in evenly(int(dataset.frames[i]), each):
            total += dataset.read_trajectory(i, slice(t, t + 1))[:, 0].numpy()
            count += 1
    return total / count


def _load(path: Path, key: str) -> np.ndarray | None:
    """The mean in a file, when it is whole and of the right data."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return arrays["mean"] if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
