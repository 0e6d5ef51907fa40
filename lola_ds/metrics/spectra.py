"""Isotropic power spectra, their relative error by band, and the correlation by scale.

û(n) = 1/|S| Σ_x u(x) exp(-2πi n·x/S) is the discrete Fourier transform of a field with shape
(…, *S) and n the integer wave vector. Cells are cubes of one size, so the wave number of n, in
waves along the longest side N = max S, is κ = N |n/S|. Shell k holds the n with k - 1/2 ≤ κ < k +
1/2.

    p_u(k) = Σ_{n in shell k} |û(n)|²          power, in the field's unit squared

Σ_k p_u(k) = ⟨u²⟩ (Parseval) includes the shells beyond the Nyquist wave number N/2, the corners of
the grid; bands end at N/2. Axes whose cells differ in size must be interpolated first
(`Grid.to_uniform`). On axes that are not periodic, the jump across the boundary adds power ∝ k⁻² to
truth and forecast alike.

References:
    | Lost in Latent Space (Rozet et al., 2025), appendix on metrics
    | https://arxiv.org/abs/2507.02608

    | The Well (Ohana et al., 2024), binned spectral errors
    | https://arxiv.org/abs/2412.00568
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "BANDS",
    "band_edges",
    "band_mean",
    "power_spectrum",
    "spectral_correlation",
    "spectrum_error",
]

BANDS = ("low", "mid", "high")

# Power below this fraction of the total is round-off of a float32 field, not signal.
_FLOOR = 1e-14


def _shells(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The shells and multiplicities of the coefficients of `rfftn`, flat.

    `rfftn` leaves out the conjugates of the coefficients whose last index is neither 0 nor the
    Nyquist index: these count twice.
    """
    square = torch.zeros((), dtype=torch.float64, device=device)
    for axis, size in enumerate(shape):
        last = axis == len(shape) - 1
        f = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(size, dtype=torch.float64)
        square = square[..., None] + f.to(device).square()
    shell = (max(shape) * square.sqrt() + 0.5).floor().long()
    count = torch.full((shape[-1] // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    count[0] = 1.0
    if shape[-1] % 2 == 0:
        count[-1] = 1.0
    return shell.flatten(), count.expand(shell.shape).flatten()


def _transform(u: Tensor, spatial: int) -> Tensor:
    """û over the half spectrum: (…, *S) -> (…, n), complex128."""
    dims = tuple(range(-spatial, 0))
    return torch.fft.rfftn(u.to(torch.float64), dim=dims, norm="forward").flatten(-spatial)


def _shell_sum(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums of a half spectrum over its shells: (…, n) -> (…, K)."""
    shell, count = _shells(shape, x.device)
    out = x.new_zeros(*x.shape[:-1], int(shell.max()) + 1)
    return out.index_add_(-1, shell, x * count)


def power_spectrum(u: Tensor, spatial: int) -> Tensor:
    """Returns the isotropic power spectrum p_u(k), k = 0..K-1, in float64.

    Arguments:
        u: The field, with shape (…, *S).
        spatial: The number of spatial axes.

    Returns:
        The spectrum, with shape (…, K). p_u(0) is the squared mean.
    """
    return _shell_sum(_transform(u, spatial).abs().square(), u.shape[-spatial:])


def spectral_correlation(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    """Returns the correlation ρ(k) = Re Σ_{n in k} û(n) v̂(n)* / √(p_u(k) p_v(k)) at each scale.

    Signed terms are summed before any absolute value: equal structures score 1, independent or
    displaced ones 0, opposite ones -1, whatever their amplitudes. Shells without power score 0.

    Arguments:
        u, v: The truth and the forecast, with shape (…, *S).
        spatial: The number of spatial axes.

    Returns:
        The correlations, with shape (…, K), in float64.
    """
    u_hat, v_hat = _transform(u, spatial), _transform(v, spatial)
    shape = u.shape[-spatial:]
    cross = _shell_sum((u_hat * v_hat.conj()).real, shape)
    norm = (
        _shell_sum(u_hat.abs().square(), shape) * _shell_sum(v_hat.abs().square(), shape)
    ).sqrt()
    return cross / norm.clamp_min(torch.finfo(torch.float64).tiny)


def band_edges(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first and last wave number (inclusive) of the bands low, mid and high of a grid.

    The range 1 to N/2 is cut in three pieces of equal length in log k. For N = 64: 1-3, 4-10,
    11-32.

    Arguments:
        shape: The shape *S of the grid.

    Raises:
        ValueError: The longest side has fewer than 6 cells.
    """
    nyquist = max(shape) // 2
    if nyquist < 3:
        raise ValueError(f"a grid of {tuple(shape)} cells has no three bands: 6 cells at least")
    last = [int(nyquist ** (i / 3) + 1e-9) for i in (1, 2)] + [nyquist]
    return list(zip([1, last[0] + 1, last[1] + 1], last))


def band_mean(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the means over the bands of `band_edges`.

    Arguments:
        x: The values by wave number, with shape (…, K).
        shape: The shape *S of the grid.

    Returns:
        The means, with shape (…, 3).
    """
    return torch.stack([x[..., a : b + 1].mean(dim=-1) for a, b in band_edges(shape)], dim=-1)


def spectrum_error(p_u: Tensor, p_v: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the relative error √(1/|b| Σ_{k in b} (1 - p_v(k)/p_u(k))²) in each band b.

    Phases do not matter, see `spectral_correlation` for these. The denominator is raised by
    1e-14 Σ_k p_u(k), the round-off of a float32 field, so that shells without power do not
    dominate.

    Arguments:
        p_u, p_v: The spectra of truth and forecast, with shape (…, K).
        shape: The shape *S of the grid.

    Returns:
        The errors, with shape (…, 3).
    """
    floor = _FLOOR * p_u.sum(dim=-1, keepdim=True) + torch.finfo(p_u.dtype).tiny
    return band_mean(((p_v - p_u) / (p_u + floor)).square(), shape).sqrt()
