"""Pictures of one forecast or reconstruction, collected while its states stream by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lola_ds.evaluate.animation import animate
from lola_ds.evaluate.figures import cuts, planes, plot_snapshots
from lola_ds.evaluate.tables import evenly

__all__ = ["Pictures", "picture_files"]

SNAPSHOTS = 5  # states that are drawn of every field
PIXELS = 256  # pictures of larger states are thinned


def picture_files(fields: Sequence[str], axes: Sequence[str], animated: bool) -> list[str]:
    """Names of the files that `Pictures.draw` always writes."""
    kinds = ["snapshots", "slices"] if len(axes) == 3 else ["snapshots"]
    names = [f"{kind}_{field}.png" for kind in kinds for field in fields]
    return [*names, "animation.gif"] if animated else names


class Pictures:
    """What is drawn of T states: some of every field, and all of the first field as an animation.

    Only 2-d pictures are kept, thinned to `PIXELS`: 3-d states are cut in the middle of their last
    axis, and the last state across every axis.

    Arguments:
        fields: names of the C fields.
        axes: names of the spatial axes.
        titles: captions of the T states.
        captions: captions of the frames of the animation, a known state before the T first; None
            for no animation.
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
        self.chosen = evenly(len(titles), SNAPSHOTS)
        self._snapshots: dict[str, list[np.ndarray]] = {}
        self._frames: dict[str, list[np.ndarray]] = {}
        self._slices: dict[str, np.ndarray] = {}
        self._members = 1

    def add_known(self, x: Tensor) -> None:
        """The known state (C, *S) that a forecast starts from."""
        picture = _picture(x)[0]
        for name in ("truth", "one", "mean"):
            self._frames.setdefault(name, []).append(picture)

    def add(self, first: int, u: Tensor, v: Tensor) -> None:
        """States `first`, first + 1, … of the T: truth (C, t, *S), what was made of it (M, …)."""
        self._members = len(v)
        mean = v.mean(dim=0)
        for t in range(u.shape[1]):
            rows = {"truth": u[:, t], "one": v[0, :, t], "mean": mean[:, t]}
            if self.captions is not None:
                for name, x in rows.items():
                    self._frames.setdefault(name, []).append(_picture(x[:1])[0])
            if first + t in self.chosen:
                if len(v) > 1:
                    rows["two"] = v[1, :, t]
                for name, x in rows.items():
                    self._snapshots.setdefault(name, []).append(_picture(x))
            if first + t == len(self.titles) - 1 and len(self.axes) == 3:
                self._slices = {name: _slices(x) for name, x in rows.items()}

    def draw(self, out: Path, made: str) -> list[Path]:
        """Writes all pictures; `made` names what one member is called.

        Returns:
            The files written.
        """
        titles = [self.titles[t] for t in self.chosen]
        names = {"truth": "truth", "one": made}
        if self._members > 1:
            names = {"truth": "truth", "one": "member 1", "two": "member 2"}
            names["mean"] = f"mean of {self._members}"
        files = []
        snapshots = {name: np.stack(x, axis=1) for name, x in self._snapshots.items()}
        drawn = {"snapshots": (snapshots, titles)}
        if self._slices:
            middles = [f"middle of {axis}, {self.titles[-1]}" for axis in self.axes]
            drawn["slices"] = self._slices, middles
        for kind, (states, columns) in drawn.items():
            for c, field in enumerate(self.fields):
                rows = {label: states[name][c] for name, label in names.items()}
                error = states["mean"][c] - states["truth"][c]
                files.append(out / f"{kind}_{field}.png")
                plot_snapshots(rows, error, columns, field, files[-1])
        if self.captions is None:
            return files
        frames = {name: np.stack(x) for name, x in self._frames.items()}
        error = f"error of the mean of {self._members}" if self._members > 1 else "error"
        return files + animate(
            {"truth": frames["truth"], names["one"]: frames["one"]},
            frames["mean"] - frames["truth"],
            error,
            self.captions,
            self.fields[0],
            out / "animation",
        )


def _picture(x: Tensor) -> np.ndarray:
    """(C, *S) -> thinned pictures (C, rows, columns) float32, the first axis to the right."""
    return _thinned(planes(x.detach().float().cpu().numpy()))


def _slices(x: Tensor) -> np.ndarray:
    """(C, X, Y, Z) -> thinned pictures (C, 3, rows, columns) float32, cut across every axis."""
    return _thinned(cuts(x.detach().float().cpu().numpy()))


def _thinned(pictures: np.ndarray) -> np.ndarray:
    step = max(1, -(-max(pictures.shape[-2:]) // PIXELS))
    return np.ascontiguousarray(pictures[..., ::step, ::step])
