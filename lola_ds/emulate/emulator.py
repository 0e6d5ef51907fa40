"""An emulator in physical units: states in, states out, whatever happens in between.

    emulator = load_emulator("weights/dm")
    forecast = emulator.rollout(x0, label, steps=25, members=16)     # (16, C, 25, *S)

Symbols: M members, C fields, c known states, T new states, *S spatial axes, D label features, L
frames of the model's window. Consecutive states are `stride` frames of the data apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from ..fields import Standardize
from ..models import Autoencoder, Denoiser, Surrogate
from .rollout import Step, make_step, rollout

if TYPE_CHECKING:
    import xarray

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

    def identity(self) -> dict[str, str]:
        """Hashes of all that its numbers depend on."""
        weights = {} if self.autoencoder is None else {"autoencoder": fingerprint(self.autoencoder)}
        transform = dict(sorted(self.standardize.transform.items()))
        return {**weights, "statistics": fingerprint(self.standardize), "transform": str(transform)}

    def decoding_bytes(self, z: Tensor) -> int:
        """Memory that decoding one state takes, for choosing how many are decoded at a time.

        Measured on a GPU; on a CPU estimated as six of the largest activations.

        Arguments:
            z: states as `decode` takes them; the first one is decoded.
        """
        first = z[:1, :, :1]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.decode(first, device=self.device)
            return torch.cuda.max_memory_allocated(self.device) - before
        largest = 0

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * output.element_size())

        modules = [self.standardize, *(self.autoencoder or nn.Identity()).modules()]
        hooks = [module.register_forward_hook(look) for module in modules]
        try:
            largest = max(largest, 4 * self.decode(first).numel())
        finally:
            for hook in hooks:
                hook.remove()
        return 6 * largest


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
        fields: the fields' names, in channel order, for `to_xarray`.
        axes: the spatial axes' names, likewise.
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
        fields: Sequence[str] = (),
        axes: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.codec = Codec(autoencoder, standardize, device)
        self.length, self.stride = int(trajectory["length"]), int(trajectory["stride"])
        self.label_log = list(label_log)
        self.spatial = spatial
        channels = len(self.codec.standardize.mean)
        self.fields = list(fields) or [f"field_{i}" for i in range(channels)]
        self.axes = list(axes) or [f"axis_{i}" for i in range(spatial)]

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
        z = self.generate(
            x0, label, steps, members, seed, context, overlap, sampler, sampling_steps, batch,
            progress,
        )  # fmt: skip
        forecast = self.decode(z, batch, x0.device)
        return forecast.expand(members, *forecast.shape[1:])

    @torch.no_grad()
    def generate(
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
        """The states of a rollout as the model holds them, for decoding a few at a time.

        Arguments:
            x0, label, …: as for `rollout`.

        Returns:
            (M, C', T, *S'), latents (or standardised states) on the emulator's device; M is 1 for
            a surrogate, whose members are all the same.

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
            pieces.append(z[:, :, context:])
        return torch.cat(pieces)

    def decode(self, z: Tensor, batch: int = 16, device: torch.device | str = "cpu") -> Tensor:
        """States of `generate` in physical units: (M, C', T, *S') -> (M, C, T, *S) on `device`."""
        return self.codec.decode(z, batch, device)

    def to_xarray(
        self,
        states: Tensor,
        step: float | None = None,
        coordinates: Mapping[str, Sequence[float]] | None = None,
    ) -> xarray.Dataset:
        """A forecast with names: one variable per field over (member, lead, *axes).

        Arguments:
            states: (M, C, T, *S), physical units, as `rollout` returns them.
            step: time between two states, for a coordinate `time` (lead time) beside `lead`, which
                counts states from 1.
            coordinates: axis -> its coordinates.

        Raises:
            ImportError: xarray is not installed (`pip install "lola_ds[xarray]"`).
            ValueError: states of another shape.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError('to_xarray needs `pip install "lola_ds[xarray]"`') from error
        if states.ndim != 3 + self.spatial or states.shape[1] != len(self.fields):
            raise ValueError(
                f"states of shape {tuple(states.shape)} are not (M, C, T, *S) with "
                f"C={len(self.fields)} fields and {self.spatial} spatial axes"
            )
        M, _, T = states.shape[:3]
        values = states.detach().cpu().numpy()
        dims = ("member", "lead", *self.axes)
        named: dict[str, Any] = {"member": range(M), "lead": range(1, T + 1), **(coordinates or {})}
        if step is not None:
            named["time"] = ("lead", [step * k for k in range(1, T + 1)])
        variables = {field: (dims, values[:, c]) for c, field in enumerate(self.fields)}
        return xarray.Dataset(variables, coords=named)

    def identity(self) -> dict[str, Any]:
        """All that its forecasts depend on, weights and statistics as hashes; JSON values."""
        return {
            "model": fingerprint(self.model),
            **self.codec.identity(),
            "window": self.length,
            "stride": self.stride,
            "label_log": self.label_log,
        }

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


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers, those left out of its state included."""
    digest = xxhash.xxh3_64()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
