"""The pictures of one forecast or reconstruction, recorded while its states are computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lola_ds.evaluate.plots.animation import animate
from lola_ds.evaluate.plots.states import central_slices, plot_snapshots, state_planes
from lola_ds.evaluate.tables import even_indices

__all__ = ["PictureRecorder", "picture_files"]

SNAPSHOTS = 5
"""How many of the states are drawn of every field."""

PIXELS = 256
"""The greatest side of a plane; larger ones are subsampled."""


def picture_files(fields: Sequence[str], axes: Sequence[str], animated: bool) -> list[str]:
    """Returns the names of the files that `PictureRecorder.draw` always writes."""
    kinds = ["snapshots", "slices"] if len(axes) == 3 else ["snapshots"]
    names = [f"{kind}_{field}.png" for kind in kinds for field in fields]
    return [*names, "animation.gif"] if animated else names


class PictureRecorder:
    """Records what is drawn of T states: some of every field, and all of the first field.

    Only subsampled planes are kept. 3-d states are cut in the middle of their last axis, and the
    last state is also cut across every axis.

    Arguments:
        fields: The names of the C fields.
        axes: The names of the spatial axes.
        titles: The titles of the T states.
        captions: The titles of the animation's frames, one known state and the T states. By
            default, there is no animation.
    """

    def __init__(
        self,
        fields: Sequence[str],
        axes: Sequence[str],
        titles: Sequence[str],
        captions: Sequence[str] | None = None,
    ) -> None:
        self.fields, self.axes = list(fields), list(axes)
        self.titles, self.captions = list(titles), captions
        self.chosen = even_indices(len(titles), SNAPSHOTS)
        self._snapshots: dict[str, list[np.ndarray]] = defaultdict(list)
        self._frames: dict[str, list[np.ndarray]] = defaultdict(list)
        self._slices: dict[str, np.ndarray] = {}
        self._members = 1

    def add_known(self, x: Tensor) -> None:
        """Records the last known state of a forecast, with shape (C, *S)."""
        for name in ("truth", "one", "mean"):
            self._frames[name].append(_planes(x[:1])[0])

    def add(self, first: int, u: Tensor, v: Tensor) -> None:
        """Records some consecutive states.

        Arguments:
            first: The index of the first one among the T states.
            u: The truth, with shape (C, t, *S).
            v: The forecast or reconstruction, with shape (M, C, t, *S).
        """
        self._members, mean = len(v), v.mean(dim=0)
        for t in range(u.shape[1]):
            rows = {"truth": u[:, t], "one": v[0, :, t], "mean": mean[:, t]}
            if self.captions is not None:
                for name, x in rows.items():
                    self._frames[name].append(_planes(x[:1])[0])
            if self._members > 1:
                rows["two"] = v[1, :, t]
            if first + t in self.chosen:
                for name, x in rows.items():
                    self._snapshots[name].append(_planes(x))
            if first + t == len(self.titles) - 1 and len(self.axes) == 3:
                self._slices = {
                    name: _subsample(central_slices(_array(x))) for name, x in rows.items()
                }

    def draw(self, out: Path, label: str) -> list[Path]:
        """Writes all pictures.

        Arguments:
            out: The folder.
            label: The name of a forecast or reconstruction that has one member.

        Returns:
            The files written.
        """
        names = {"truth": "truth", "one": label}
        if self._members > 1:
            names = {"truth": "truth", "one": "member 1", "two": "member 2"}
            names["mean"] = f"mean of {self._members}"
        snapshots = {name: np.stack(x, axis=1) for name, x in self._snapshots.items()}
        drawn = {"snapshots": (snapshots, [self.titles[t] for t in self.chosen])}
        if self._slices:
            titles = [f"middle of {axis}, {self.titles[-1]}" for axis in self.axes]
            drawn["slices"] = self._slices, titles
        files = []
        for kind, (planes, titles) in drawn.items():
            for c, field in enumerate(self.fields):
                rows = {label: planes[name][c] for name, label in names.items()}
                error = planes["mean"][c] - planes["truth"][c]
                files.append(out / f"{kind}_{field}.png")
                plot_snapshots(rows, error, titles, field, files[-1])
        if self.captions is None:
            return files
        frames = {name: np.stack(x) for name, x in self._frames.items()}
        return files + animate(
            {"truth": frames["truth"], names["one"]: frames["one"]},
            frames["mean"] - frames["truth"],
            f"error of the mean of {self._members}" if self._members > 1 else "error",
            self.captions,
            self.fields[0],
            out / "animation",
        )


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _planes(x: Tensor) -> np.ndarray:
    """(C, *S) -> (C, rows, columns), subsampled."""
    return _subsample(state_planes(_array(x)))


def _subsample(planes: np.ndarray) -> np.ndarray:
    step = max(1, -(-max(planes.shape[-2:]) // PIXELS))
    return np.ascontiguousarray(planes[..., ::step, ::step])
