r"""Isotropic power spectra, their relative error by band, and correlation by scale.

Symbols: û(n) = 1/|S| Σ_x u(x) exp(-2πi n·x/S) the discrete Fourier transform of a field u of
shape (…, *S) over its last `spatial` axes, n the integer wave vector. The cells are cubes of one
size, so the wave number of n, in waves along the longest side N = max S, is κ = N |n/S|.
Shell k = 0, 1, 2… holds the n with k - 1/2 ≤ κ < k + 1/2.

    p_u(k) = Σ_{n in shell k} |û(n)|²          power, in the field's unit squared

Σ_k p_u(k) = ⟨u²⟩ (Parseval), the shells beyond the Nyquist wave number N/2 (the corners of the
grid) included; bands end at N/2. Axes whose cells differ in size must be interpolated first
(`Grid.to_uniform`). Fields are transformed as they are: on axes that are not
periodic, the jump across the boundary adds power ∝ k⁻² to truth and forecast alike.

References:
    Rozet et al., Lost in Latent Space, 2025 (arXiv:2507.02608), appendix on metrics: relative
        error of the power spectrum in three bands evenly spaced in log k.
    Ohana et al., The Well, 2024 (arXiv:2412.00568), binned spectral errors.
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
    """Shell number of each coefficient of `rfftn`, and how often it counts (1 or 2).

    `rfftn` leaves out the conjugates of the coefficients whose last index is neither 0 nor
    Nyquist's: those count twice.

    Returns:
        Two flat tensors over the half spectrum: int64 shells and float64 multiplicities.
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
    """û over the half spectrum, flattened: (…, *S) -> (…, n) complex128."""
    dims = tuple(range(-spatial, 0))
    return torch.fft.rfftn(u.to(torch.float64), dim=dims, norm="forward").flatten(-spatial)


def _shell_sum(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums a half spectrum over its shells: (…, n) -> (…, K)."""
    shell, count = _shells(shape, x.device)
    out = x.new_zeros(*x.shape[:-1], int(shell.max()) + 1)
    return out.index_add_(-1, shell, x * count)


def power_spectrum(u: Tensor, spatial: int) -> Tensor:
    r"""The isotropic power spectrum p_u(k), k = 0, 1, …: (…, *S) -> (…, K) float64.

    k counts waves along the longest side; p_u(0) is the squared mean and Σ_k p_u(k) = ⟨u²⟩.
    """
    return _shell_sum(_transform(u, spatial).abs().square(), u.shape[-spatial:])


def spectral_correlation(u: Tensor, v: Tensor, spatial: int) -> Tensor:
    r"""Correlation of two fields at each scale, phase kept: (…, *S) -> (…, K) float64 in [-1, 1].

    ρ(k) = Re Σ_{n in k} û(n) v̂(n)* / √(p_u(k) p_v(k)). The signed terms are summed BEFORE any
    absolute value: 1 for equal structures, 0 for independent or displaced ones, -1 for opposite
    ones, whatever their amplitudes. Shells without power give 0.
    """
    u_hat, v_hat = _transform(u, spatial), _transform(v, spatial)
    shape = u.shape[-spatial:]
    cross = _shell_sum((u_hat * v_hat.conj()).real, shape)
    norm = (
        _shell_sum(u_hat.abs().square(), shape) * _shell_sum(v_hat.abs().square(), shape)
    ).sqrt()
    return cross / norm.clamp_min(torch.finfo(torch.float64).tiny)


def band_edges(shape: Sequence[int]) -> list[tuple[int, int]]:
    """First and last wave number (inclusive) of the bands low, mid, high of a grid.

    1 to Nyquist's N/2 cut in three pieces of equal length in log k; e.g. a side of 64 cells:
    1-3, 4-10, 11-32.

    Raises:
        ValueError: on a grid too small to hold three bands (fewer than 6 cells).
    """
    nyquist = max(shape) // 2
    if nyquist < 3:
        raise ValueError(f"a grid of {tuple(shape)} cells has no three bands: 6 cells at least")
    last = [int(nyquist ** (i / 3) + 1e-9) for i in (1, 2)] + [nyquist]
    return list(zip([1, last[0] + 1, last[1] + 1], last))


def band_mean(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Means over the bands of `band_edges(shape)`: (…, K) -> (…, 3)."""
    return torch.stack([x[..., a : b + 1].mean(dim=-1) for a, b in band_edges(shape)], dim=-1)


def spectrum_error(p_u: Tensor, p_v: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Relative root mean squared error of a spectrum in three bands: (…, K) -> (…, 3); no unit.

    √(1/|b| Σ_{k in b} (1 - p_v(k)/p_u(k))²) for b = low, mid, high (Rozet et al., 2025). It
    ignores phase by design; `spectral_correlation` is its complement. The denominator is raised
    by 1e-14 Σ_k p_u(k), the round-off of a float32 field, so that shells without power in the
    truth do not dominate.

    Arguments:
        p_u: spectrum of the truth, from `power_spectrum`.
        p_v: spectrum of the forecast.
        shape: the grid S, for its bands.
    """
    floor = _FLOOR * p_u.sum(dim=-1, keepdim=True) + torch.finfo(p_u.dtype).tiny
    return band_mean(((p_v - p_u) / (p_u + floor)).square(), shape).sqrt()
