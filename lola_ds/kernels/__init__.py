"""Fused operations: Triton where it runs and is faster, torch elsewhere.

Each function here takes what its namesake in `reference` takes and gives the same values, with
gradients, up to the rounding of the dtype. `dispatch` chooses; the kernels' files import Triton and
are opened only when it is chosen. Every kernel is a torch operator (`lola_ds::…`), so compiled
graphs, activation checkpointing and every ZeRO stage treat it as one of torch.

| function | where |
|---|---|
| `qk_norm_rope` | queries and keys of every transformer block |
| `modulate_branches` | before every block of a transformer |
| `gated_residual` | after every block of a transformer |
| `silu_dropout` | feed-forward layers |
| `channel_norm` | convolutional autoencoders |
| `denoising_errors` | the objective of diffusion |
| `ema` | the weights' moving averages |
| `seeded_normal` | noise of samples that have a seed each |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lola_ds.kernels import reference
from lola_ds.kernels.dispatch import (
    enable_second_derivatives,
    get_kernel_mode,
    second_derivatives_enabled,
    set_kernel_mode,
    use_triton,
)

__all__ = [
    "channel_norm",
    "denoising_errors",
    "ema",
    "enable_second_derivatives",
    "gated_residual",
    "get_kernel_mode",
    "modulate_branches",
    "qk_norm_rope",
    "second_derivatives_enabled",
    "seeded_normal",
    "set_kernel_mode",
    "silu_dropout",
]


def _first(*reasons: tuple[bool, str]) -> str | None:
    """The first reason that holds."""
    return next((text for holds, text in reasons if holds), None)


def qk_norm_rope(
    qkv: Tensor,
    coordinates: Tensor | None = None,
    theta: Tensor | None = None,
    norm: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises and rotates queries and keys; see `reference.qk_norm_rope`."""
    refusal = _first(
        (qkv.shape[-1] > 256, f"heads of {qkv.shape[-1]} > 256 channels"),
        (not norm and theta is None, "nothing to normalise or rotate"),
        (theta is not None and theta.dtype != torch.float32, "theta is not float32"),
    )
    if use_triton("qk_norm_rope", qkv, refusal):
        from lola_ds.kernels import rotary

        return rotary.qk_norm_rope(qkv, coordinates, theta, norm, eps)
    return reference.qk_norm_rope(qkv, coordinates, theta, norm, eps)


def modulate_branches(
    x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises, scales and shifts tokens for two uses; see `reference.modulate_branches`."""
    if use_triton("modulate", x, _first((x.shape[-1] > 8192, "more than 8192 channels"))):
        from lola_ds.kernels import norm

        return norm.modulate_branches(x, a, b, dtype, eps)
    return reference.modulate_branches(x, a, b, dtype, eps)


def gated_residual(
    x: Tensor, y: Tensor, c: Tensor, skip: Tensor | None = None, d: Tensor | None = None
) -> Tensor:
    """Adds a gated branch and a gated skip input; see `reference.gated_residual`."""
    if use_triton("gated_residual", x):
        from lola_ds.kernels import residual

        return residual.gated_residual(x, y, c, skip, d)
    return reference.gated_residual(x, y, c, skip, d)


def silu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Applies SiLU to `x`, then dropout with rate `p` in training.

    The two sides draw different masks. Without dropout nothing is gained over torch's own SiLU.
    """
    if not training or p == 0:
        return F.silu(x)
    if use_triton("silu_dropout", x, _first((p > 0.99, "a rate above 0.99"))):
        from lola_ds.kernels import activation

        return activation.silu_dropout(x, p)
    return F.dropout(F.silu(x), p)


def channel_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalises fields over channels; see `reference.channel_norm`.

    A compiler is as quick alone, and fuses it with the casts, halos and sums around it.
    """
    fused = torch.compiler.is_compiling() and get_kernel_mode() == "auto"
    if not fused and use_triton(
        "channel_norm", x, _first((x.shape[1] > 8192, "more than 8192 channels"))
    ):
        from lola_ds.kernels import norm

        return norm.channel_norm(x, eps)
    return reference.channel_norm(x, eps)


def denoising_errors(
    output: Tensor, x: Tensor, noise: Tensor, mask: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Computes a denoising network's errors by frame; see `reference.denoising_errors`."""
    refusal = _first((x.dtype != torch.float32, "windows are not float32"))
    if use_triton("denoising_errors", output, refusal):
        from lola_ds.kernels import denoising

        return denoising.denoising_errors(output, x, noise, mask, alpha, sigma)
    return reference.denoising_errors(output, x, noise, mask, alpha, sigma)


def ema(
    averages: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], decays: Sequence[float]
) -> None:
    """Moves averages towards weights, in place; see `reference.ema`."""
    if not weights:
        return
    single = len(decays) == 1 and get_kernel_mode() == "auto"  # torch's own is as quick
    if not single and use_triton("ema", weights[0]):
        from lola_ds.kernels import averages as kernel

        kernel.ema(averages, weights, decays)
    else:
        reference.ema(averages, weights, decays)


def seeded_normal(seeds: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Draws noise from the samples' seeds; see `reference.seeded_normal`."""
    if device.type == "cuda":
        from lola_ds.kernels import noise

        return noise.seeded_normal(seeds, shape, device)
    return reference.seeded_normal(seeds, shape, device)
