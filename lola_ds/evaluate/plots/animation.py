"""Animations of a forecast: truth, one member and error of the mean, side by side.

They are written as GIF and, if `imageio-ffmpeg` is installed, as MP4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lola_ds.atomic_io import replacing
from lola_ds.evaluate.plots.states import draw_state, error_scale, truth_scale
from lola_ds.evaluate.plots.style import field_label, styled_figure

__all__ = ["animate", "render_frames", "write_gif", "write_mp4"]

FRAMES_PER_SECOND = 4


def animate(
    panels: Mapping[str, np.ndarray],
    error: np.ndarray,
    error_name: str,
    titles: Sequence[str],
    field: str,
    stem: Path,
) -> list[Path]:
    """Writes `stem.gif` and, if `imageio-ffmpeg` is installed, `stem.mp4`.

    Arguments:
        panels: The planes of each panel by its title, with shape (T, h, w), on the colour scale of
            the first panel.
        error: The planes of the error, with shape (T, h, w), on a symmetric scale.
        error_name: The title of the error's panel.
        titles: The T titles of the frames.
        field: The name of the field.
        stem: The path without suffix.

    Returns:
        The files written.
    """
    frames = render_frames(panels, error, error_name, titles, field)
    gif, mp4 = stem.with_suffix(".gif"), stem.with_suffix(".mp4")
    write_gif(frames, gif)
    return [gif, mp4] if write_mp4(frames, mp4) else [gif]


def render_frames(
    panels: Mapping[str, np.ndarray],
    error: np.ndarray,
    error_name: str,
    titles: Sequence[str],
    field: str,
) -> np.ndarray:
    """Renders the frames of `animate`, with shape (T, H, W, 3), uint8, H and W even."""
    planes = [*panels.values(), error]
    scales = [truth_scale(planes[0])] * len(panels) + [error_scale(error)]
    frames = []
    with styled_figure(7.2, 2.0 * error.shape[1] / error.shape[2] + 0.85) as fig:
        fig.set_dpi(100)
        canvas = FigureCanvasAgg(fig)
        axes = fig.subplots(1, len(planes), squeeze=False)[0]
        images = [draw_state(ax, x[0], scale) for ax, x, scale in zip(axes, planes, scales)]
        for ax, name in zip(axes, [*panels, error_name]):
            ax.set_title(name)
        for image, beside, label, pad in (
            (images[0], axes[:-1], field_label(field), 0.01),
            (images[-1], axes[-1:], "error", 0.02),
        ):
            fig.colorbar(image, ax=beside, label=label, pad=pad).ax.grid(False)
        for t, title in enumerate(titles):
            for image, x in zip(images, planes):
                image.set_array(x[t])
            fig.suptitle(title)
            canvas.draw()
            fig.set_layout_engine("none")  # keeps the layout of the first frame
            frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    stacked = np.stack(frames)
    return stacked[:, : stacked.shape[1] // 2 * 2, : stacked.shape[2] // 2 * 2]


def write_gif(frames: np.ndarray, path: Path) -> None:
    """Writes a looping GIF with one palette for all frames, the last of which lasts longer.

    Arguments:
        frames: The frames, with shape (T, H, W, 3), uint8.
        path: The file.
    """
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
    """Writes an H.264 video that browsers play.

    Arguments:
        frames: The frames, with shape (T, H, W, 3), uint8, H and W even.
        path: The file.

    Returns:
        Whether it was written, that is, whether `imageio-ffmpeg` is installed.
    """
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
