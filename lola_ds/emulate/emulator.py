"""An emulator in physical units: states in, states out, whatever happens in between.

    emulator = load_emulator("weights/dm")
    forecast = emulator.rollout(x0, label, steps=25, members=16)     # (16, C, 25, *S)

Symbols: M members, C fields, c known states, T new states, *S spatial axes, D label features, L
frames of the model's window. Consecutive states are `stride` frames of the data apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..fields import Standardize
from ..models import Autoencoder, Denoiser, Surrogate
from .rollout import Step, make_step, rollout

__all__ = ["Codec", "Emulator"]

# Samplers that draw noise at every step, for all members of a batch together.
_STOCHASTIC = ("ddpm", "pc")


class Codec:
    """Physical states to and from what a model sees: standardised, and encoded if it sees latents.

    Arguments:
        autoencoder: maps standardised states to latents and back; None for a model of pixels.
        standardize: the fields' transform and statistics.
        device: where both run.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | None,
        standardize: Standardize,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.autoencoder = None if autoencoder is None else autoencoder.to(self.device).eval()
        self.standardize = standardize.to(self.device)

    @torch.no_grad()
    def encode(self, x: Tensor, batch: int = 16) -> Tensor:
        """Physical states (C, T, *S) -> (C', T, *S'), `batch` states at a time."""
        pieces = []
        for piece in x.transpose(0, 1).split(batch):
            z = self.standardize(piece.to(self.device))
            pieces.append(z if self.autoencoder is None else self.autoencoder.encode(z))
        return torch.cat(pieces).transpose(0, 1)

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 16, device: torch.device | str = "cpu") -> Tensor:
        """(M, C', T, *S') -> physical states (M, C, T, *S), float32, on `device`.

        Decodes `batch` states at a time into the result: no more than those are held twice.
        """
        M, T = z.shape[0], z.shape[2]
        out = None
        for start in range(0, M * T, batch):
            index = torch.arange(start, min(start + batch, M * T), device=z.device)
            m, t = index // T, index % T
            piece = z[m, :, t]
            x = piece if self.autoencoder is None else self.autoencoder.decode(piece)
            x = self.standardize.inverse(x).to(device)
            if out is None:
                out = x.new_empty(M, x.shape[1], T, *x.shape[2:])
            out[m.to(device), :, t.to(device)] = x
        assert out is not None
        return out

    def reconstruct(self, x: Tensor, batch: int = 16) -> Tensor:
        """States (C, T, *S) encoded and decoded, on the device of `x`: the autoencoder's own error.

        Raises:
            ValueError: there is no autoencoder.
        """
        if self.autoencoder is None:
            raise ValueError("a model of pixels has no autoencoder to reconstruct with")
        return self.decode(self.encode(x, batch)[None], batch, x.device)[0]


class Emulator:
    """A trained model with all it needs to read and write physical states.

    Arguments:
        model: completes windows of (latent) states.
        autoencoder: maps standardised states to the model's latents and back; None for a model of
            pixels.
        standardize: the fields' transform and statistics.
        trajectory: the window the model was trained on: `length` L and `stride`.
        label_log: positions in the label whose logarithm the model sees.
        device: where everything runs.
        spatial: the number of spatial axes.
    """

    def __init__(
        self,
        model: Surrogate | Denoiser,
        autoencoder: Autoencoder | None,
        standardize: Standardize,
        trajectory: Mapping[str, int],
        label_log: Sequence[int] = (),
        device: torch.device | str = "cpu",
        spatial: int = 2,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.codec = Codec(autoencoder, standardize, device)
        self.length, self.stride = int(trajectory["length"]), int(trajectory["stride"])
        self.label_log = list(label_log)
        self.spatial = spatial

    @property
    def generative(self) -> bool:
        """Whether members differ: a denoiser samples, a surrogate has one answer."""
        return isinstance(self.model, Denoiser)

    @torch.no_grad()
    def rollout(
        self,
        x0: Tensor,
        label: Tensor | None,
        steps: int,
        members: int = 1,
        seed: int = 0,
        context: int = 1,
        overlap: int = 1,
        sampler: str = "ab",
        sampling_steps: int = 16,
        batch: int = 16,
        progress: Callable[[int], object] = lambda count: None,
    ) -> Tensor:
        """Emulates the `steps` states that follow `x0`.

        Member m depends on `seed` and m alone, not on `members` or `batch` (up to the rounding of
        sums that networks order by batch size).

        Arguments:
            x0: the known state (C, *S), or known states (C, c, *S) of which the last `context` are
                used; physical units.
            label: the label (D,) as the data holds it; None for a model without.
            steps: T.
            members: M; a surrogate's are one, shown M times.
            seed: of a denoiser's noise.
            context: known states at the start of the first window.
            overlap: states a later window shares with the one before.
            sampler: a denoiser's sampler. Members go one at a time through those that draw noise at
                every step (ddpm, pc).
            sampling_steps: its number of steps.
            batch: members through the model, and states through the autoencoder, at a time.
            progress: called after each window with the number of members it advanced; there are
                `windows(steps, context, overlap)` for each member.

        Returns:
            (M, C, T, *S) float32, on the device of `x0`, physical units.

        Raises:
            ValueError: a shape that is no state, or counts that do not fit the window.
        """
        if steps < 1 or members < 1 or batch < 1:
            raise ValueError(f"steps={steps}, members={members}, batch={batch}: must be at least 1")
        z0 = self.codec.encode(self._known(x0, context), batch)
        if label is not None:
            label = self._label(label)
        distinct = members if self.generative else 1
        size = 1 if sampler in _STOCHASTIC else batch
        pieces = []
        for first in range(0, distinct, size):
            step = make_step(
                self.model,
                label,
                sampler=sampler,
                steps=sampling_steps,
                seed=seed,
                first_member=first,
            )
            z = rollout(
                _counted(step, progress),
                z0,
                self.length,
                context + steps,
                context,
                overlap,
                members=min(size, distinct - first),
            )
            pieces.append(self.codec.decode(z[:, :, context:], batch, x0.device))
        forecast = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return forecast.expand(members, *forecast.shape[1:])

    def windows(self, steps: int, context: int = 1, overlap: int = 1) -> int:
        """Number of windows it takes to emulate `steps` states."""
        after_first = max(0, steps - (self.length - context))
        return 1 + -(-after_first // (self.length - overlap))

    def reconstruct(self, x: Tensor, batch: int = 16) -> Tensor:
        """States (C, T, *S) through the autoencoder alone; see `Codec.reconstruct`."""
        return self.codec.reconstruct(x, batch)

    def _known(self, x0: Tensor, context: int) -> Tensor:
        """The last `context` known states: (C, *S) or (C, c, *S) -> (C, context, *S)."""
        if x0.ndim == 1 + self.spatial:
            x0 = x0.unsqueeze(1)
        channels = len(self.codec.standardize.mean)
        if x0.ndim != 2 + self.spatial or x0.shape[0] != channels:
            raise ValueError(
                f"x0 of shape {tuple(x0.shape)} is neither (C, *S) nor (C, c, *S) with "
                f"C={channels} fields and {self.spatial} spatial axes"
            )
        if not 1 <= context <= x0.shape[1]:
            raise ValueError(f"context={context} states are needed, x0 holds {x0.shape[1]}")
        return x0[:, -context:]

    def _label(self, label: Tensor) -> Tensor:
        label = label.to(self.device, torch.float32).clone()
        label[self.label_log] = label[self.label_log].log()
        return label


def _counted(step: Step, progress: Callable[[int], object]) -> Step:
    """`step`, telling `progress` after each window how many members it advanced."""

    def counted(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        y = step(mask, x_obs, i)
        progress(len(x_obs))
        return y

    return counted
