"""Every score of one forecast against one trajectory, field by field and lead time by lead time.

Symbols: `u` the truth (C, T, *S) over T lead times; `v` the forecast (M, C, T, *S), M members.
Lead times are scored one after the other, so that the float64 copies and spectra of one state, not
of the trajectory, set the memory needed. A forecast that is not finite has infinite errors and no
correlation with anything: NaN would drop out of averages and flatter the model that blew up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import metrics

__all__ = ["Scores", "score_ensemble", "score_states", "score_truth"]


@dataclass(frozen=True)
class Scores:
    """Scores of one forecast.

    Attributes:
        values: metric -> (C, T) float64.
        power: power spectrum (C, T, K) float64, averaged over members.
    """

    values: dict[str, Tensor]
    power: Tensor


def score_states(u: Tensor, v: Tensor) -> Scores:
    """Scores of single states, averaged over the members: what to expect of ONE member.

    Metrics: rmse, nrmse, vrmse; spectrum_low, _mid, _high (relative error of the power spectrum in
    a band) and correlation_low, _mid, _high (with the truth, phase kept).
    """
    return _stack([_score_state(u[:, t], v[:, :, t]) for t in range(u.shape[1])])


def score_ensemble(u: Tensor, v: Tensor) -> Scores:
    """Scores of the members together: their mean as one state, and the ensemble's own.

    Metrics: those of `score_states`, spread, skill, spread_skill (corrected), crps (fair).

    Raises:
        ValueError: with fewer than 2 members.
    """
    return _stack([_score_ensemble(u[:, t], v[:, :, t]) for t in range(u.shape[1])])


def score_truth(u: Tensor) -> Scores:
    """The truth's spatial standard deviation (metric std), the unit of relative errors."""
    spatial = u.ndim - 2
    std = u.double().flatten(2).std(dim=2, correction=0)
    power = torch.stack(
        [metrics.power_spectrum(u[:, t], spatial) for t in range(u.shape[1])], dim=1
    )
    return Scores({"std": std}, power)


def _score_state(u: Tensor, v: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """u (C, *S), v (M, C, *S) -> metric -> (C,), power (C, K)."""
    spatial, shape = u.ndim - 1, u.shape[1:]
    errors = {"rmse": metrics.rmse, "nrmse": metrics.nrmse, "vrmse": metrics.vrmse}
    values = {name: _bad(error(u, v, spatial)).mean(dim=0) for name, error in errors.items()}
    p_u, p_v = metrics.power_spectrum(u, spatial), metrics.power_spectrum(v, spatial)
    banded = {
        "spectrum": _bad(metrics.spectrum_error(p_u, p_v, shape)),
        "correlation": metrics.band_mean(
            metrics.spectral_correlation(u, v, spatial).nan_to_num(nan=0.0), shape
        ),
    }
    for name, x in banded.items():
        for band, value in zip(metrics.BANDS, x.mean(dim=0).unbind(dim=-1)):
            values[f"{name}_{band}"] = value
    return values, p_v.mean(dim=0)


def _score_ensemble(u: Tensor, v: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    spatial = u.ndim - 1
    values, power = _score_state(u, v.mean(dim=0, keepdim=True))
    values["spread"] = _bad(metrics.spread(v, spatial))
    values["skill"] = _bad(metrics.skill(u, v, spatial))
    values["spread_skill"] = metrics.spread_skill_ratio(u, v, spatial)
    values["crps"] = _bad(metrics.fair_crps(u, v, spatial))
    return values, power


def _bad(error: Tensor) -> Tensor:
    """Errors with infinity in the place of NaN."""
    return torch.where(error.isnan(), torch.inf, error)


def _stack(states: list[tuple[dict[str, Tensor], Tensor]]) -> Scores:
    values = {name: torch.stack([s[name] for s, _ in states], dim=1).cpu() for name in states[0][0]}
    return Scores(values, torch.stack([power for _, power in states], dim=1).cpu())
