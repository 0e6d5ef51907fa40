"""The animation of a forecast: truth, one member, error of the mean, side by side, through time.

Written as a GIF, which every page shows, and as an MP4 when `imageio-ffmpeg` is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lola_ds.atomic_io import replacing
from lola_ds.evaluate.figures import limits, planes, show
from lola_ds.evaluate.style import pretty

__all__ = ["animate", "render_frames", "write_gif", "write_mp4"]

FRAMES_PER_SECOND = 4


def animate(
    rows: dict[str, np.ndarray],
    error: np.ndarray,
    error_name: str,
    titles: Sequence[str],
    field: str,
    stem: Path,
) -> list[Path]:
    """Writes `stem.gif` and, when `imageio-ffmpeg` is there, `stem.mp4`.

    Arguments:
        rows: name -> states (T, *S) of one field, drawn left to right on the scale of the first.
        error: (T, *S), drawn last, on a symmetric scale of its own.
        error_name: its title.
        titles: T captions.
        field: the field's name, for the colour bar.
        stem: the path without suffix.

    Returns:
        The files written.
    """
    frames = render_frames(rows, error, error_name, titles, field)
    gif = stem.with_suffix(".gif")
    write_gif(frames, gif)
    mp4 = stem.with_suffix(".mp4")
    return [gif, mp4] if write_mp4(frames, mp4) else [gif]


def render_frames(
    rows: dict[str, np.ndarray],
    error: np.ndarray,
    error_name: str,
    titles: Sequence[str],
    field: str,
) -> np.ndarray:
    """The pictures of an animation: (T, height, width, 3) uint8, height and width even."""
    pictures = [planes(states) for states in rows.values()]
    errors = planes(error)
    aspect = errors.shape[1] / errors.shape[2]
    scale = limits(pictures[0])
    bound = max(abs(x) for x in limits(errors))
    frames = []
    with matplotlib.rc_context({"font.size": 8}):
        fig = Figure(figsize=(7.2, 2.0 * aspect + 0.85), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(fig)
        axes = fig.subplots(1, len(pictures) + 1, squeeze=False)[0]
        images = [show(ax, states[0], *scale) for ax, states in zip(axes, pictures)]
        images.append(show(axes[-1], errors[0], -bound, bound, "RdBu_r"))
        for ax, name in zip(axes, [*rows, error_name]):
            ax.set_title(name)
        fig.colorbar(images[0], ax=axes[:-1], label=pretty(field), pad=0.01)
        fig.colorbar(images[-1], ax=axes[-1:], label="error", pad=0.02)
        for index, title in enumerate(titles):
            for image, states in zip(images, [*pictures, errors]):
                image.set_data(states[index])
            fig.suptitle(title)
            canvas.draw()
            fig.set_layout_engine("none")  # the first frame's layout holds for all
            frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    stacked = np.stack(frames)
    return stacked[:, : stacked.shape[1] // 2 * 2, : stacked.shape[2] // 2 * 2]


def write_gif(frames: np.ndarray, path: Path) -> None:
    """Writes an endless GIF with one palette for all frames, the last one held longer."""
    sample = frames[:: max(1, len(frames) // 8)]
    montage = Image.fromarray(sample.reshape(-1, *frames.shape[2:]))
    palette = montage.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in frames
    ]
    duration = [1000 // FRAMES_PER_SECOND] * (len(frames) - 1) + [1500]
    with replacing(path) as temporary:
        images[0].save(
            temporary, save_all=True, append_images=images[1:], duration=duration, loop=0
        )


def write_mp4(frames: np.ndarray, path: Path) -> bool:
    """Writes H.264 that browsers play; False, and nothing written, without `imageio-ffmpeg`."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return False
    height, width = frames.shape[1:3]
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=FRAMES_PER_SECOND,
            macro_block_size=2,
            output_params=["-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return True
