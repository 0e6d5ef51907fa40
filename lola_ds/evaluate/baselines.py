"""The climatology, the mean of the training split over time and trajectories, as a forecast.

When the flow has forgotten its initial state, no forecast of a single state has a smaller expected
squared error.
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
from lola_ds.evaluate.tables import even_indices

__all__ = ["climatology", "dataset_digest"]

FRAMES = 2048  # frames of the training split, spread evenly over it, that are averaged at most


def climatology(
    dataset: ShardDataset, cache: Path, frames: int = FRAMES, progress: bool = True
) -> Tensor:
    """Returns the mean state of a split in physical units.

    Arguments:
        dataset: The training split, in physical units.
        cache: A file that keeps the mean for this dataset and number of frames.
        frames: The most frames to average, spread evenly over trajectories and time.
        progress: Whether to show a progress bar.

    Returns:
        The mean, with shape (C, *S), float32.
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
    """Returns a hash of all values of a dataset, from the checksums in its index."""
    digest = XXH3()
    for index in dataset.indexes:
        digest.update(np.ascontiguousarray(index.checksums).tobytes())
    return digest.hexdigest()


def _mean(dataset: ShardDataset, frames: int, progress: bool) -> np.ndarray:
    """The mean in float64, with one frame in memory at a time."""
    total, count = np.zeros(dataset.shape), 0
    chosen = even_indices(dataset.trajectories, frames)
    each = max(1, frames // len(chosen))
    for i in tqdm(chosen, desc="climatology", unit="trajectory", disable=not progress):
        for t in even_indices(int(dataset.frames[i]), each):
            total += dataset.read_trajectory(i, slice(t, t + 1))[:, 0].numpy()
            count += 1
    return total / count


def _load(path: Path, key: str) -> np.ndarray | None:
    """The mean in a file, if it is intact and of the same data."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return arrays["mean"] if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
