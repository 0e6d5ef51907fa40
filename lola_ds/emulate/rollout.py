"""Rolling an emulator out: window after window, each starting from the end of the last.

Shapes: M members, C channels, L frames of a window, *S spatial axes, D label features.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Protocol

import torch
from torch import Tensor

from lola_ds.emulate.sampling import SAMPLERS, sample
from lola_ds.models.denoiser import Denoiser
from lola_ds.models.surrogate import Surrogate


class Step(Protocol):
    """Completes windows.

    Called with `mask` (True for known frames, with shape (1, 1, L, 1, ...)), `x_obs` (M, C, L, *S), zero
    where frames are unknown, and the number `i` of the window; returns windows (M, C, L, *S).
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

    The first window starts with `context` known frames of `x`, each later one with the last `overlap` frames
    emulated so far. The last window is cropped to `frames`.

    Arguments:
        step: completes a window; see `Step`.
        x: known frames, with shape (C, K, *S) and K at least `context`, in standardised units.
        window: the number L of frames in a window.
        frames: the number of frames to return, known ones included.
        context: the number of known frames at the start.
        overlap: the number of frames that a window shares with the last.
        members: the number M of independent trajectories.

    Returns:
        Trajectories, with shape (M, C, frames, *S), the `context` known frames first.

    Raises:
        ValueError: if there are not enough known frames, or context and overlap do not leave room for a
            prediction in a window.
    """
    _check_rollout(x, window, frames, context, overlap, members)
    known = x[:, :context].expand(members, -1, -1, *x.shape[2:])
    pieces, count, i = [known], context, 0
    while count < frames:
        start = known.shape[2]
        x_obs = known.new_zeros(members, len(x), window, *x.shape[2:])
        x_obs[:, :, :start] = known
        mask = torch.arange(window, device=x.device) < start
        y = step(mask.view(1, 1, -1, *[1] * (x.ndim - 2)), x_obs, i)
        pieces.append(y[:, :, start:])
        count += window - start
        known = torch.cat((known, y[:, :, start:]), dim=2)[:, :, -overlap:]
        i += 1
    return torch.cat(pieces, dim=2)[:, :, :frames]


def _check_rollout(
    x: Tensor, window: int, frames: int, context: int, overlap: int, members: int
) -> None:
    for name, value in {"context": context, "overlap": overlap}.items():
        if not 1 <= value < window:
            raise ValueError(
                f"{name}={value} should be at least 1 and less than window={window} frames"
            )
    if x.shape[1] < context:
        raise ValueError(f"context={context} frames are needed but only {x.shape[1]} are known")
    if frames < 1 or members < 1:
        raise ValueError(f"frames={frames} and members={members} should be at least 1")


def make_step(
    model: Surrogate | Denoiser,
    label: Tensor | None = None,
    *,
    sampler: str = "ab",
    steps: int = 16,
    seed: int = 0,
    first_member: int = 0,
) -> Step:
    """Makes the step of a rollout from a model.

    The noise of a window depends on the seed, the member and the window's number only: members may be rolled
    out together or apart. (Samplers that draw noise at each step draw it for all members together.)

    Arguments:
        model: a surrogate or a denoiser.
        label: the label, with shape (D,), or one for each member, with shape (M, D).
        sampler: the sampler of a denoiser.
        steps: the number of steps of the sampler.
        seed: the seed of a denoiser's noise.
        first_member: the number of the first member, where members are rolled out apart.

    Raises:
        ValueError: if the sampler is unknown.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler='{sampler}' is unknown; known: {', '.join(SAMPLERS)}")

    def labels(x_obs: Tensor) -> Tensor | None:
        return None if label is None else label.to(x_obs).expand(len(x_obs), -1)

    def predict(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        return model(x_obs, mask, labels(x_obs))

    def generate(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        noises = []
        for member in range(first_member, first_member + len(x_obs)):
            generator = torch.Generator(x_obs.device).manual_seed(_hash(seed, member, i))
            noises.append(
                torch.randn(x_obs.shape[1:], generator=generator, device=x_obs.device)
            )
        time = torch.ones((), dtype=torch.float64, device=x_obs.device)
        _, sigma_1 = model.schedule(time)
        return sample(
            model,
            mask,
            x_obs,
            labels(x_obs),
            sampler=sampler,
            steps=steps,
            x_1=sigma_1 * torch.stack(noises),
            generator=torch.Generator().manual_seed(_hash(seed, first_member, i, 1)),
        )

    return generate if isinstance(model, Denoiser) else predict


def _hash(*numbers: int) -> int:
    """A 62-bit hash of integers, the same on every machine."""
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 2
