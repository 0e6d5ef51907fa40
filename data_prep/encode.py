"""Shards of fields -> shards of latents, by a trained autoencoder.

Latents cannot be flipped, permuted or rolled, so augmentation happens before encoding: beside the
plain pass, each trajectory may be encoded several times under random symmetries, the same for all
its frames. Each pass is a trajectory of its own in the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lola_ds.augment import Symmetry, draw_symmetry
from lola_ds.data import ShardDataset, ShardWriter
from lola_ds.data.format import INDEX, checksum
from lola_ds.data.index import Index, open_index
from lola_ds.hashing import hash64
from lola_ds.log import logger

__all__ = ["EncodedTrajectory", "encode_split"]


class EncodedTrajectory:
    """The latents of a trajectory, (T, C', *S'), encoded when a block of frames is read.

    Arguments:
        windows: the split.
        i: the trajectory.
        symmetry: applied to all frames before encoding, or None.
        encode: physical states (B, C, *S) -> latents (B, C', *S').
        shape: of a latent, (C', *S').
        batch_size: frames encoded at once.
    """

    def __init__(
        self,
        windows: ShardDataset,
        i: int,
        symmetry: Symmetry | None,
        encode: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        batch_size: int,
    ) -> None:
        self.windows = windows
        self.i = i
        self.symmetry = symmetry
        self.encode = encode
        self.shape = (int(windows.frames[i]), *shape)
        self.batch_size = batch_size

    def __getitem__(self, frames: slice) -> np.ndarray:
        first, last, _ = frames.indices(self.shape[0])
        blocks = [
            self._encode_block(start, min(start + self.batch_size, last))
            for start in range(first, last, self.batch_size)
        ]
        return np.concatenate(blocks)

    def _encode_block(self, start: int, stop: int) -> np.ndarray:
        x = self.windows.read_trajectory(self.i, slice(start, stop))
        if self.symmetry is not None:
            assert self.windows.spec is not None
            x = torch.from_numpy(self.symmetry.window(x.numpy(), self.windows.spec).copy())
        return self.encode(x.transpose(0, 1)).float().cpu().numpy()


def encode_split(
    encode: Callable[[Tensor], Tensor],
    source: Path,
    out: Path,
    *,
    provenance: Mapping[str, Any],
    augment: Sequence[str] = (),
    repeat: int = 1,
    seed: int = 0,
    batch_size: int = 32,
) -> Index:
    """Encodes one split. Resumable; nothing is visible in `out` before the split is complete.

    Arguments:
        encode: physical states (B, C, *S) -> latents (B, C', *S').
        source: folder of a split of fields.
        out: folder of the split of latents.
        provenance: what identifies the autoencoder; a split made with another one is refused.
        augment: names of augmentations for the passes after the first, see `lola_ds.augment`.
        repeat: number of passes.
        seed: of the passes' symmetries.
        batch_size: states encoded at once.

    Raises:
        FileExistsError: `out` exists and was made otherwise.
        ValueError: `repeat` without augmentations, or latents given for fields.
    """
    if repeat < 1:
        raise ValueError(f"repeat={repeat} must be at least 1")
    if repeat > 1 and not augment:
        raise ValueError(f"repeat={repeat} needs dataset.augment: passes would be all alike")
    windows = ShardDataset(source)
    if windows.kind != "fields":
        raise ValueError(f"{source} holds {windows.kind} already; give shards of fields")
    settings = {**provenance, "fields": _identity(windows), "repeat": repeat, "seed": seed}
    if (out / INDEX).is_file():
        return _existing(out, settings)
    # A whole batch for its shape: a compiled encoder then meets no other number of states.
    first = windows.read_trajectory(0, slice(0, batch_size)).transpose(0, 1)
    shape = tuple(encode(first).shape[1:])
    writer = ShardWriter(out, kind="latents", source=settings)
    passes = [(i, number) for number in range(repeat) for i in range(windows.trajectories)]
    try:
        for i, number in tqdm(passes, desc=f"encode {out.parent.name}/{out.name}", unit=" traj"):
            meta, symmetry = _describe(windows, i, number, shape, augment, seed)
            latents = EncodedTrajectory(windows, i, symmetry, encode, shape, batch_size)
            writer.add(f"{windows.meta(i)['key']}-pass{number:02d}", latents, meta)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _describe(
    windows: ShardDataset,
    i: int,
    number: int,
    shape: Sequence[int],
    augment: Sequence[str],
    seed: int,
) -> tuple[dict[str, Any], Symmetry | None]:
    """The metadata of one pass over trajectory `i`, and its symmetry (none for the first pass)."""
    meta = windows.meta(i)
    axes = list(meta["boundary"])
    codes = np.asarray([meta["boundary"][axis] for axis in axes])
    symmetry = None
    if number > 0:
        assert windows.spec is not None
        draw = hash64(hash64(seed, number), i)
        symmetry = draw_symmetry(augment, windows.spec, windows.shape[1:], codes, draw)
        codes = symmetry.codes(codes)
    kept = ("dataset", "split", "source", "trajectory", "scalars", "time")
    described = {key: meta[key] for key in kept if key in meta}
    described["boundary"] = {axis: [int(c) for c in side] for axis, side in zip(axes, codes)}
    described["fields"] = [{"name": f"latent_{c}", "rank": 0} for c in range(shape[0])]
    described["pass"] = number
    return described, symmetry


def _identity(windows: ShardDataset) -> str:
    """Tells splits apart: a hash over the checksums of all frames."""
    return f"{checksum(windows.indexes[0].checksums.tobytes()):016x}"


def _existing(out: Path, settings: Mapping[str, Any]) -> Index:
    index = open_index(out)
    found = index.header["sources"]
    if found != [dict(settings)]:
        raise FileExistsError(
            f"{out} exists, made with {found}, now {dict(settings)}; "
            "remove it or choose another out="
        )
    logger.info(f"{out}: complete already, nothing to do")
    return index
