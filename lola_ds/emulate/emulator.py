"""An emulator whose inputs and outputs are states in physical units.

    emulator = load_emulator("weights/dm")
    forecast = emulator.rollout(x0, label, steps=25, members=16)     # (16, C, 25, *S)

Symbols: M members, C fields, c known states, T new states, *S spatial axes, D label features, L
frames of the model's window. Consecutive states are `stride` frames of the data apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lola_ds.emulate.codec import Codec, fingerprint
from lola_ds.emulate.cuda_graph import CudaGraphedSampling
from lola_ds.emulate.guidance import Guidance, Guide, Observations, observe
from lola_ds.emulate.memory import working_bytes
from lola_ds.emulate.options import SamplingOptions
from lola_ds.emulate.rollout import make_step, stream
from lola_ds.emulate.sampling import STOCHASTIC, sample
from lola_ds.fields import Standardize
from lola_ds.models import Autoencoder, Denoiser, Surrogate
from lola_ds.nn.inference import prepare_for_inference

if TYPE_CHECKING:
    import xarray

__all__ = ["Emulator"]

# Windows of one member that samplers hold beside the network's activations: known values, noise,
# the state, its means at the last steps, and what they are computed through.
_WINDOWS = 18


class Emulator:
    """A trained model with all it needs to read and write physical states.

    Arguments:
        model: Completes windows of (latent) states.
        autoencoder: Maps standardised states to the model's latents and back; None for a model of
            pixels.
        standardize: The fields' transform and statistics.
        trajectory: The window the model was trained on: `length` L and `stride`.
        label_log: Positions in the label whose logarithm the model sees.
        device: Where everything runs.
        spatial: The number of spatial axes.
        fields: The fields' names, in channel order, for `to_xarray`.
        axes: The spatial axes' names, likewise.
        precision: The precision of the matrix products and convolutions of the model and of the
            decoder, `fp32` or `bf16`. Sampled latents of a tiny model with random weights then
            differ by 1e-3 of their norm; `benchmarks/step.csv` has the figure of other models.
        compiled: Whether the networks are compiled and, on a GPU, the steps of the sampler `ab` one
            CUDA graph: quicker from the second window of a shape on. Guided forecasts, which
            differentiate the networks, run uncompiled.

    Raises:
        ValueError: The precision is unknown, or a network cannot be compiled.
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
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision} is unknown; choose fp32 or bf16")
        self.precision = precision
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.codec = Codec(autoencoder, standardize, device, compiled)
        self._weights = fingerprint(self.model)
        self.compiled = compiled
        self._draw: Callable[..., Tensor] = CudaGraphedSampling() if compiled else sample
        prepare_for_inference(self.model, precision, compiled)
        self.length, self.stride = int(trajectory["length"]), int(trajectory["stride"])
        self.label_log = list(label_log)
        self.spatial = spatial
        channels = len(self.codec.standardize.mean)
        self.fields = list(fields) or [f"field_{i}" for i in range(channels)]
        self.axes = list(axes) or [f"axis_{i}" for i in range(spatial)]

    def autocast(self) -> AbstractContextManager:
        """Returns the context in which networks run."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Returns a context in which the networks run uncompiled."""
        if not self.compiled:
            yield
            return
        draw, self._draw = self._draw, sample
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._draw = draw

    @property
    def generative(self) -> bool:
        """Whether members differ: those of a denoiser do, those of a surrogate do not."""
        return isinstance(self.model, Denoiser)

    @torch.no_grad()
    def rollout(
        self,
        x0: Tensor,
        label: Tensor | None,
        steps: int,
        members: int = 1,
        *,
        observations: Observations | None = None,
        batch: int = 16,
        progress: Callable[[int], object] = lambda count: None,
        **options: Any,
    ) -> Tensor:
        """Emulates the `steps` states that follow `x0`.

        Member m depends on `seed` and m alone, not on `members` or `batch` (up to the rounding of
        sums that networks order by batch size).

        Arguments:
            x0: The known state, with shape (C, *S), or known states, with shape (C, c, *S), of
                which the last `context` are used; physical units.
            label: The label as the data holds it, with shape (D,); None for a model without.
            steps: The number T of states.
            members: The number M of members; the one of a surrogate is repeated M times.
            observations: What was observed, where there is `guidance`; see `observe`. Decoding and
                gradients then take memory for a window of each of `batch` members.
            batch: The number of members through the model, and of states through the autoencoder,
                at a time. Members go one at a time through samplers that draw noise at every step
                (ddpm, ito, pc).
            progress: Called after each window with the number of members it advanced; there are
                `windows(steps, context, overlap)` for each member.
            options: Other options of `SamplingOptions`: `seed`, `context`, `overlap`, `sampler`,
                `sampling_steps`, `guidance`, `guidance_scale`.

        Returns:
            The forecast in float32, with shape (M, C, T, *S), on the device of `x0`, in physical
            units.

        Raises:
            ValueError: `x0` has not the shape of states, or a count does not fit the window.
        """
        windows = self.stream(
            x0[None],
            None if label is None else label[None],
            SamplingOptions(steps, members, **options),
            None if observations is None else [observations],
            batch=batch,
            progress=progress,
        )
        forecast = torch.cat([self.decode(z[0], batch, x0.device) for z in windows], dim=2)
        return forecast.expand(members, *forecast.shape[1:])

    @torch.no_grad()
    def stream(
        self,
        x0: Tensor,
        label: Tensor | None,
        options: SamplingOptions,
        observations: Sequence[Observations] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        batch: int = 16,
        progress: Callable[[int], object] = lambda count: None,
    ) -> Iterator[Tensor]:
        """Several rollouts side by side, window by window, as the model holds them.

        No more than a window of each member is in memory, however long the rollouts are.

        Arguments:
            x0: The known states of U forecasts, with shape (U, C, *S) or (U, C, c, *S); physical
                units.
            label: The labels, with shape (U, D); None for a model without.
            options: The options of all forecasts.
            observations: The observations of each forecast, all of the same frames.
            seeds: The seed of each forecast's noise; that of the options by default.
            batch: The number of members, of all forecasts, through the model at a time.
            progress: As for `rollout`.

        Yields:
            The next t latents (or standardised states) on the emulator's device, for `decode`, with
            shape (U, M, C', t, *S'); M is 1 for a surrogate, whose members are all the same.

        Raises:
            ValueError: `x0` has not the shape of states, or a count does not fit the window.
        """
        steps, members, context = options.steps, options.members, options.context
        if steps < 1 or members < 1 or batch < 1:
            raise ValueError(f"steps={steps}, members={members}, batch={batch}: must be at least 1")
        seeds = [options.seed] * len(x0) if seeds is None else seeds
        M = members if self.generative else 1
        rows = [(seed, member) for seed in seeds for member in range(M)]
        known = torch.stack([self.codec.encode(self._known(x, context), batch) for x in x0])
        known = known.repeat_interleave(M, dim=0)
        labels = None if label is None else self._label(label).repeat_interleave(M, dim=0)
        size = 1 if options.sampler in STOCHASTIC else batch
        parts = [slice(first, first + size) for first in range(0, len(rows), size)]
        guides = self._guides(options.guidance, observations, len(x0), context)
        advance = [
            make_step(
                self.model,
                None if labels is None else labels[part],
                options,
                rows=rows[part],
                guide=guides([row // M for row in range(len(rows))[part]]),
                draw=self._draw,
            )
            for part in parts
        ]
        context_of = nullcontext if options.guidance is None else self.uncompiled

        def step(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
            pieces = []
            for part, complete in zip(parts, advance):
                with self.autocast(), context_of():
                    pieces.append(complete(mask, x_obs[part], i))
                progress(len(pieces[-1]))
            return torch.cat(pieces)

        skip = context
        for y in stream(step, known, self.length, context + steps, options.overlap):
            yield y[:, :, skip:].unflatten(0, (len(x0), M))
            skip = 0

    def _guides(
        self,
        guidance: Guidance | None,
        observations: Sequence[Observations] | None,
        forecasts: int,
        context: int,
    ) -> Callable[[Sequence[int]], Guide | None]:
        """Returns the guide of a batch, given the forecast that each of its members belongs to."""
        if guidance is None and observations is None:
            return lambda members: None
        if guidance is None or observations is None or len(observations) != forecasts:
            given = "no" if observations is None else len(observations)
            raise ValueError(
                f"a guided rollout takes both guidance and observations, one for each forecast: "
                f"guidance={guidance}, {given} observations for {forecasts} forecasts"
            )

        def decode(z: Tensor) -> Tensor:
            return self.codec.states(z, guidance.units)

        return lambda members: Guide(
            guidance, [observations[u] for u in members], decode, origin=context - 1
        )

    def observe(
        self,
        x: Tensor,
        guidance: Guidance,
        frames: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Observations:
        """Measures a true trajectory with the operator of the guidance, for a guided rollout.

        Arguments:
            x: The states that follow the last known one, with shape (C, T, *S); physical units.
            guidance: The operator and its noise.
            frames: The numbers of the F observed frames, counted from 1; all by default.
            seed: The seed of the noise.

        Returns:
            The observations, with values of shape (F, ...).

        Raises:
            ValueError: A frame is not among the T.
        """
        frames = range(1, x.shape[1] + 1) if frames is None else frames
        if outside := [frame for frame in frames if not 1 <= frame <= x.shape[1]]:
            raise ValueError(f"frames: {outside[0]} is not among 1 to {x.shape[1]}")
        states = x[:, [frame - 1 for frame in frames]].transpose(0, 1).to(self.device)
        if guidance.units == "standardised":
            states = self.codec.standardize(states)
        return observe(states, guidance, frames, torch.Generator().manual_seed(seed))

    def member_bytes(
        self,
        x0: Tensor,
        label: Tensor | None,
        options: SamplingOptions,
        observations: Observations | None = None,
    ) -> int:
        """Returns the bytes that advancing one member takes, found from one window in one step.

        Arguments:
            x0: The known state, with shape (C, *S), or known states, with shape (C, c, *S).
            label: The label, with shape (D,); None for a model without.
            options: The options of the forecast.
            observations: What was observed, where the options have guidance.
        """
        guided = options.guidance is not None
        labels = None if label is None else label[None]
        seen = None if observations is None else [observations]
        least = replace(options, steps=1, members=1, sampling_steps=1)

        def run() -> Tensor:
            return next(self.stream(x0[None], labels, least, seen))

        network = nn.Sequential(self.model, self.codec.autoencoder or nn.Identity())
        with self.uncompiled():
            window = run().shape[2:]
            work = working_bytes(network if guided else self.model, run, self.device, guided)
        states = 4 * self.length * math.prod((window[0], *window[2:]))
        return work + _WINDOWS * states

    def decode(self, z: Tensor, batch: int = 16, device: torch.device | str = "cpu") -> Tensor:
        """Decodes states of `stream`.

        Arguments:
            z: Latents or standardised states, with shape (M, C', T, *S').
            batch: The number of states that are decoded at a time.
            device: The device of the result.

        Returns:
            Physical states in float32, with shape (M, C, T, *S).
        """
        with self.autocast():
            return self.codec.decode(z, batch, device)

    def to_xarray(
        self,
        states: Tensor,
        step: float | None = None,
        coordinates: Mapping[str, Sequence[float]] | None = None,
    ) -> xarray.Dataset:
        """Makes a labelled dataset of a forecast.

        Arguments:
            states: The forecast, with shape (M, C, T, *S); physical units.
            step: The time between two states, for a coordinate `time` (lead time) beside `lead`,
                which counts states from 1.
            coordinates: The coordinates of each axis, by its name.

        Returns:
            One variable for each field, over (member, lead, *axes).

        Raises:
            ImportError: xarray is not installed (`pip install "lola_ds[xarray]"`).
            ValueError: The states have another shape.
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
        """Returns what forecasts depend on, with hashes of weights and statistics; JSON values."""
        return {
            "model": self._weights,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            **self.codec.identity(),
            "window": self.length,
            "stride": self.stride,
            "label_log": self.label_log,
        }

    def windows(self, steps: int, context: int = 1, overlap: int = 1) -> int:
        """Returns the number of windows that it takes to emulate `steps` states."""
        after_first = max(0, steps - (self.length - context))
        return 1 + -(-after_first // (self.length - overlap))

    def reconstruct(self, x: Tensor, batch: int = 16) -> Tensor:
        """Encodes and decodes states (C, T, *S); see `Codec.reconstruct`."""
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
        """Labels (U, D) as the model sees them."""
        label = label.to(self.device, torch.float32).clone()
        label[:, self.label_log] = label[:, self.label_log].log()
        return label
