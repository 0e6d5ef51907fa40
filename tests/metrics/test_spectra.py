"""Spectra against a naive sum over all wave vectors, single cosines and Parseval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_ds.metrics import (
    band_edges,
    band_mean,
    power_spectrum,
    spectral_correlation,
    spectrum_error,
)


def naive_cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Σ over the wave vectors of each shell of û v̂*, from the full transform."""
    a, b = np.fft.fftn(u, norm="forward"), np.fft.fftn(v, norm="forward")
    N, sums = max(u.shape), {}
    for n in np.ndindex(*u.shape):
        signed = [m - s if m > s / 2 else m for m, s in zip(n, u.shape)]
        kappa = N * math.sqrt(sum((m / s) ** 2 for m, s in zip(signed, u.shape)))
        k = math.floor(kappa + 0.5)
        sums[k] = sums.get(k, 0) + a[n] * np.conj(b[n])
    return np.array([sums.get(k, 0) for k in range(max(sums) + 1)])


@given(spatial=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_spectrum_and_correlation_match_a_sum_over_wave_vectors(spatial: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 9, size=spatial)
    u, v = rng.normal(1.0, 1.0, shape), rng.normal(0.5, 1.0, shape)
    p_u, p_v = naive_cross(u, u).real, naive_cross(v, v).real
    power = power_spectrum(torch.tensor(u), spatial)
    np.testing.assert_allclose(power, p_u, rtol=1e-10, atol=1e-14)
    expected = naive_cross(u, v).real / np.sqrt(np.maximum(p_u * p_v, 1e-300))
    rho = spectral_correlation(torch.tensor(u), torch.tensor(v), spatial)
    np.testing.assert_allclose(rho, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(16,), (15,), (16, 16), (9, 12), (32, 8), (6, 7, 8)])
def test_parseval(shape: tuple[int, ...]) -> None:
    u = 2 + torch.randn(3, *shape, dtype=torch.float64)
    power = power_spectrum(u, len(shape))
    mean_square = u.square().flatten(1).mean(dim=1)
    assert torch.allclose(power.sum(dim=-1), mean_square, rtol=1e-12)
    assert torch.allclose(power[:, 0], u.flatten(1).mean(dim=1).square(), rtol=1e-10)


@pytest.mark.parametrize(("nx", "ny", "k"), [(5, 0, 5), (0, 16, 16), (3, 4, 5), (1, 1, 1)])
def test_a_cosine_sits_in_its_bin(nx: int, ny: int, k: int) -> None:
    x = torch.arange(32, dtype=torch.float64) / 32
    u = torch.cos(2 * math.pi * (nx * x[:, None] + ny * x[None, :]))
    power = power_spectrum(u, 2)
    expected = float(u.square().mean())
    assert float(power[k]) == pytest.approx(expected, rel=1e-12)
    power[k] = 0
    assert float(power.abs().max()) < 1e-25


def test_wave_numbers_count_waves_along_the_longest_side() -> None:
    wave = torch.cos(2 * math.pi * torch.arange(64, dtype=torch.float64) / 8)  # one in 8 cells
    assert int(power_spectrum(wave[:, None].expand(64, 16), 2).argmax()) == 8
    assert int(power_spectrum(wave[None, :16].expand(64, 16), 2).argmax()) == 8


def test_correlation_keeps_phase_and_ignores_amplitude() -> None:
    x = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32
    u = torch.cos(3 * x) + torch.cos(7 * x)
    for shift, expected in ((0.0, 1.0), (math.pi, -1.0), (math.pi / 2, 0.0), (1.0, math.cos(1.0))):
        v = 5 * torch.cos(3 * x) + 0.1 * torch.cos(7 * x - shift)
        rho = spectral_correlation(u, v, 1)
        assert float(rho[3]) == pytest.approx(1, abs=1e-10)
        assert float(rho[7]) == pytest.approx(expected, abs=1e-10)


def test_correlation_of_empty_fields_is_zero() -> None:
    u = torch.zeros(8, 8)
    assert float(spectral_correlation(u, u, 2).abs().max()) == 0


def test_bands_are_equal_in_log_and_cover_one_to_nyquist() -> None:
    assert band_edges((64, 64)) == [(1, 3), (4, 10), (11, 32)]
    assert band_edges((6,)) == [(1, 1), (2, 2), (3, 3)]
    for side in range(6, 600):
        (a, b), (c, d), (e, f) = band_edges((side, side // 4))
        assert (a, c, e, f) == (1, b + 1, d + 1, side // 2)
        assert a <= b
        assert c <= d
        assert e <= f
    with pytest.raises(ValueError, match="6 cells at least"):
        band_edges((5, 5))


def test_spectrum_error_of_a_rescaled_band() -> None:
    shape = (64, 64)
    p_u = power_spectrum(torch.randn(shape), 2)
    p_v = p_u.clone()
    p_v[4:11] *= 1.5
    error = spectrum_error(p_u, p_v, shape)
    np.testing.assert_allclose(error, [0, 0.5, 0], atol=1e-10)
    assert float(spectrum_error(p_u, p_u, shape).abs().max()) == 0
    np.testing.assert_allclose(spectrum_error(p_u, 0 * p_u, shape), [1, 1, 1], rtol=1e-9)


def test_spectrum_error_ignores_phase_where_correlation_does_not() -> None:
    u = torch.randn(32, 32, dtype=torch.float64)
    v = u.roll((8, 8), dims=(0, 1))
    error = spectrum_error(power_spectrum(u, 2), power_spectrum(v, 2), (32, 32))
    assert float(error.max()) < 1e-9
    assert float(band_mean(spectral_correlation(u, v, 2), (32, 32)).abs().max()) < 0.6


def test_empty_shells_do_not_dominate() -> None:
    x = torch.arange(32, dtype=torch.float32) * 2 * math.pi / 32
    u = torch.cos(x)[:, None].expand(32, 32)
    p_u, p_v = power_spectrum(u, 2), power_spectrum((1 + 1e-7) * u, 2)
    assert float(spectrum_error(p_u, p_v, (32, 32)).max()) < 1e-2
    zero = torch.zeros_like(p_u)
    assert float(spectrum_error(zero, zero, (32, 32)).max()) == 0
