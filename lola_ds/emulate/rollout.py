"""Rolling an emulator out: window after window, each starting from the end of the last.

Shapes: M members, C channels, L frames of a window, *S spatial axes, D label features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lola_ds.emulate.guidance import Guide
from lola_ds.emulate.options import SamplingOptions
from lola_ds.emulate.sampling import SAMPLERS, sample
from lola_ds.hashing import hash64
from lola_ds.models.denoiser import Denoiser
from lola_ds.models.surrogate import Surrogate

__all__ = ["Step", "make_step", "rollout", "stream"]

DEFAULT = SamplingOptions()


class Step(Protocol):
    """Completes windows.

    Called with `mask` (True for known frames, with shape (1, 1, L, 1, ...)), `x_obs` (M, C, L,
    *S), zero where frames are unknown, and the number `i` of the window; returns windows (M, C, L,
    *S).
    """

    def __call__(self, mask: Tensor, x_obs: Tensor, i: int) -> Tensor: ...


@torch.no_grad()
def rollout(
    step: Step,
    x: Tensor,
    window: int,
    frames: int,
    context: int = 1,
    overlap: int = 1,
    members: int = 1,
) -> Tensor:
    """Rolls an emulator out from known frames.

    The first window starts with `context` known frames of `x`, each later one with the last
    `overlap` frames emulated so far. The last window is cropped to `frames`.

    Arguments:
        step: Completes a window; see `Step`.
        x: Known frames, with shape (C, K, *S) and K at least `context`, in standardised units.
        window: The number L of frames in a window.
        frames: The number of frames to return, known ones included.
        context: The number of known frames at the start.
        overlap: The number of frames that a window shares with the last.
        members: The number M of independent trajectories.

    Returns:
        Trajectories, with shape (M, C, frames, *S). The first `context` frames are the known ones
        as the step returns them (the steps of `make_step` return them as they are).

    Raises:
        ValueError: There are not enough known frames, or context and overlap do not leave room
            for a prediction in a window.
    """
    if members < 1:
        raise ValueError(f"members={members} should be at least 1")
    if x.shape[1] < context:
        raise ValueError(f"context={context} frames are needed but only {x.shape[1]} are known")
    known = x[:, :context].expand(members, -1, -1, *x.shape[2:])
    return torch.cat(list(stream(step, known, window, frames, overlap)), dim=2)


@torch.no_grad()
def stream(
    step: Step, known: Tensor, window: int, frames: int, overlap: int = 1
) -> Iterator[Tensor]:
    """The frames of a rollout window by window, of which only the last is held.

    Arguments:
        step: Completes a window; see `Step`.
        known: The frames at the start of the first window, with shape (M, C, c, *S); the members
            may start from different ones.
        window, frames, overlap: As for `rollout`.

    Yields:
        The first window with shape (M, C, L, *S), then the new frames of each later one, cropped to
        `frames` in all.

    Raises:
        ValueError: As `rollout`.
    """
    for name, value in {"context": known.shape[2], "overlap": overlap}.items():
        if not 1 <= value < window:
            raise ValueError(
                f"{name}={value} should be at least 1 and less than window={window} frames"
            )
    if frames < 1:
        raise ValueError(f"frames={frames} should be at least 1")
    y = _complete(step, known, window, 0)
    yield y[:, :, :frames]
    done, i = window, 1
    while done < frames:
        y = _complete(step, y[:, :, -overlap:], window, i)
        yield y[:, :, overlap : overlap + frames - done]
        done, i = done + window - overlap, i + 1


def _complete(step: Step, known: Tensor, window: int, i: int) -> Tensor:
    """Completes known frames (M, C, c, *S) to windows (M, C, L, *S)."""
    M, C, c, *S = known.shape
    x_obs = torch.cat((known, known.new_zeros(M, C, window - c, *S)), dim=2)
    mask = torch.arange(window, device=known.device) < c
    return step(mask.view(1, 1, -1, *[1] * len(S)), x_obs, i)


def make_step(
    model: Surrogate | Denoiser,
    label: Tensor | None = None,
    options: SamplingOptions = DEFAULT,
    *,
    rows: Sequence[tuple[int, int]] | None = None,
    guide: Guide | None = None,
    draw: Callable[..., Tensor] = sample,
) -> Step:
    """Makes the step of a rollout from a model.

    The noise of a window depends on the seed, the member and the window's number only: members may
    be rolled out together or apart, beside those of other forecasts. (Samplers that draw noise at
    each step draw it for all members together.)

    Arguments:
        model: A surrogate or a denoiser.
        label: The label, with shape (D,), or one for each member, with shape (M, D).
        options: The sampler of a denoiser, its number of steps, its seed and its guidance scale.
        rows: The seed and the number of each member; by default (seed, 0), (seed, 1), ….
        guide: Guides a denoiser's windows by observations, for all members or one for each.
        draw: Draws windows, called as `sample`.

    Returns:
        The step, for `rollout` and `stream`.

    Raises:
        ValueError: The sampler is unknown, or a surrogate should be guided.
    """
    if options.sampler not in SAMPLERS:
        raise ValueError(f"sampler='{options.sampler}' is unknown; known: {', '.join(SAMPLERS)}")
    if not isinstance(model, Denoiser) and (guide is not None or options.guidance_scale != 1):
        raise ValueError("guidance and guidance_scale are for a diffusion model, not a surrogate")

    def expand(x_obs: Tensor) -> Tensor | None:
        return None if label is None else label.to(x_obs).expand(len(x_obs), -1)

    def predict(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        return torch.where(mask, x_obs, model(x_obs, mask, expand(x_obs)))

    if not isinstance(model, Denoiser):
        return predict
    denoiser = model

    def generate(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        keys = [(options.seed, member) for member in range(len(x_obs))] if rows is None else rows
        x_0 = draw(
            denoiser,
            mask,
            x_obs,
            expand(x_obs),
            sampler=options.sampler,
            steps=options.sampling_steps,
            x_1=_draw_start(denoiser, x_obs, keys, i),
            generator=torch.Generator().manual_seed(hash64(*keys[0], i, 1)),
            guide=None if guide is None else guide.at(_first_frame(mask, i)),
            guidance_scale=options.guidance_scale,
        )
        return torch.where(mask, x_obs, x_0)

    return generate


def _first_frame(mask: Tensor, i: int) -> int:
    """The number, in the rollout, of the first frame of window `i`."""
    return i * int((~mask).sum())  # each window adds as many frames as are not its overlap


def _draw_start(
    denoiser: Denoiser, x_obs: Tensor, keys: Sequence[tuple[int, int]], i: int
) -> Tensor:
    """The noise at time 1 of window `i`, for each member of `x_obs` (M, C, L, *S)."""
    noise = torch.empty_like(x_obs)
    for (seed, member), z in zip(keys, noise, strict=True):
        generator = torch.Generator(x_obs.device).manual_seed(hash64(seed, member, i))
        torch.randn(z.shape, generator=generator, out=z)
    _, sigma_1 = denoiser.schedule(torch.ones((), device=x_obs.device))
    return sigma_1 * noise
