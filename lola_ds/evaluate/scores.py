"""The scores of one forecast of one trajectory, by field and lead time.

Lead times and members are scored one after the other, so that the memory needed is that of the
float64 copies and spectra of one state. A forecast that is not finite has infinite errors and no
correlation: NaN would be left out of averages.

Scores of single states, averaged over members if there are several:

    mae, rmse, nrmse, vrmse   see `lola_ds.metrics.errors`
    linf                      largest error of any cell, in the field's unit
    pearson                   correlation over space
    total                     error of the domain's total, relative to the truth's magnitude
    wasserstein               distance of the distributions of values, in the field's unit
    sliced_wasserstein        the same of all fields together, without unit (field `all`)
    spectrum_{low,mid,high}   relative error of the power spectrum in a band
    correlation_{…}           correlation with the truth in a band, with phases

Scores of an ensemble: those of its mean, and

    spread, skill, spread_skill (corrected), crps (fair), energy (score, fair), coverage (of the
    range of all members), rank (histogram)

Scores against the autoencoded truth, in which a latent emulator can reach 0, end in
`_autoencoded`: rmse, nrmse, vrmse and the errors of the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lola_ds import metrics
from lola_ds.metrics import Grid

__all__ = ["Scores", "join_leads", "score_ensemble", "score_states", "score_truth"]


@dataclass(frozen=True)
class Scores:
    """The scores of one forecast.

    Attributes:
        values: The scores of each metric, with shape (C, T).
        joint: The scores of each metric of all fields together, with shape (T).
        binned: The scores of each metric with bins, with shape (C, T, bins): `power`, the spectrum
            averaged over members, by wave number, and the `rank` histogram of an ensemble.
    """

    values: dict[str, Tensor]
    joint: dict[str, Tensor] = field(default_factory=dict)
    binned: dict[str, Tensor] = field(default_factory=dict)


def score_states(
    u: Tensor, v: Tensor, grid: Grid | None = None, autoencoded: Tensor | None = None
) -> Scores:
    """Scores single states and averages over members: the expected scores of one member.

    Arguments:
        u: The truth, with shape (C, T, *S).
        v: The forecast, with shape (M, C, T, *S).
        grid: The spatial axes, evenly spaced by default.
        autoencoded: The autoencoded truth, with shape (C, T, *S), for the scores against it.
    """
    grid = grid or Grid(u.shape[2:])
    return join_leads(
        [
            _score_state(
                u[:, t], v[:, :, t], grid, None if autoencoded is None else autoencoded[:, t]
            )
            for t in range(u.shape[1])
        ]
    )


def score_ensemble(u: Tensor, v: Tensor, grid: Grid | None = None) -> Scores:
    """Scores the members together: their mean as one state, and the ensemble.

    Arguments:
        u: The truth, with shape (C, T, *S).
        v: The forecast, with shape (M, C, T, *S).
        grid: The spatial axes, evenly spaced by default.

    Raises:
        ValueError: There are fewer than 2 members.
    """
    grid = grid or Grid(u.shape[2:])
    return join_leads([_score_ensemble(u[:, t], v[:, :, t], grid) for t in range(u.shape[1])])


def score_truth(u: Tensor, grid: Grid | None = None) -> Scores:
    """Returns the spatial standard deviation `std` and the power spectrum of the truth.

    Arguments:
        u: The truth, with shape (C, T, *S).
        grid: The spatial axes, evenly spaced by default.
    """
    spatial, grid = u.ndim - 2, grid or Grid(u.shape[2:])
    pieces = []
    for x in u.unbind(dim=1):
        mean = metrics.spatial_mean(x, spatial, grid.volumes)[(...,) + (None,) * spatial]
        deviation = (x.to(torch.float64) - mean).square()
        std = metrics.spatial_mean(deviation, spatial, grid.volumes).sqrt()
        power = metrics.power_spectrum(grid.to_uniform(x), spatial)
        pieces.append(_one_lead({"std": std}, binned={"power": power}))
    return join_leads(pieces)


def join_leads(pieces: Sequence[Scores]) -> Scores:
    """Concatenates the scores of consecutive lead times."""

    def join(dicts: list[dict[str, Tensor]], axis: int) -> dict[str, Tensor]:
        return {name: torch.cat([d[name] for d in dicts], dim=axis) for name in dicts[0]}

    return Scores(
        join([p.values for p in pieces], 1),
        join([p.joint for p in pieces], 0),
        join([p.binned for p in pieces], 1),
    )


def _one_lead(
    values: dict[str, Tensor],
    joint: dict[str, Tensor] | None = None,
    binned: dict[str, Tensor] | None = None,
) -> Scores:
    """Scores of one lead time, on the CPU: values (C,), joint (), binned (C, bins)."""
    return Scores(
        {name: x.cpu()[:, None] for name, x in values.items()},
        {name: x.cpu()[None] for name, x in (joint or {}).items()},
        {name: x.cpu()[:, None] for name, x in (binned or {}).items()},
    )


def _score_state(u: Tensor, v: Tensor, grid: Grid, autoencoded: Tensor | None = None) -> Scores:
    """Scores of u (C, *S) and v (M, C, *S), one member at a time."""
    total: dict[str, Tensor] = {}
    spatial = u.ndim - 1
    p_u = metrics.power_spectrum(grid.to_uniform(u), spatial)
    p_r = None
    if autoencoded is not None:
        p_r = metrics.power_spectrum(grid.to_uniform(autoencoded), spatial)
    for x in v:
        scores = _errors(u, x, grid)
        p_x = metrics.power_spectrum(grid.to_uniform(x), spatial)
        scores |= _banded("spectrum", _nan_to_inf(metrics.spectrum_error(p_u, p_x, grid.shape)))
        rho = metrics.spectral_correlation(grid.to_uniform(u), grid.to_uniform(x), spatial)
        scores |= _banded("correlation", metrics.band_mean(rho.nan_to_num(nan=0.0), grid.shape))
        if autoencoded is not None and p_r is not None:
            scores |= _autoencoded_errors(autoencoded, x, p_r, p_x, grid)
        distance = metrics.sliced_wasserstein(u, x, spatial, grid.volumes)
        scores["sliced_wasserstein"] = _nan_to_inf(distance)
        scores["power"] = p_x
        total = {name: total[name] + s for name, s in scores.items()} if total else scores
    mean = {name: s / len(v) for name, s in total.items()}
    joint, binned = {"sliced_wasserstein": mean.pop("sliced_wasserstein")}, mean.pop("power")
    return _one_lead(mean, joint, {"power": binned})


def _errors(u: Tensor, x: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Scores of one state without Fourier transforms, (C,) each."""
    where = (u.ndim - 1, grid.volumes)
    return {
        "mae": _nan_to_inf(metrics.mae(u, x, *where)),
        "rmse": _nan_to_inf(metrics.rmse(u, x, *where)),
        "nrmse": _nan_to_inf(metrics.nrmse(u, x, *where)),
        "vrmse": _nan_to_inf(metrics.vrmse(u, x, *where)),
        "linf": _nan_to_inf(metrics.worst_error(u, x, u.ndim - 1)),
        "pearson": metrics.correlation(u, x, *where).nan_to_num(nan=0.0),
        "total": _nan_to_inf(metrics.total_error(u, x, *where)),
        "wasserstein": _nan_to_inf(metrics.wasserstein(u, x, *where)),
    }


def _autoencoded_errors(
    r: Tensor, x: Tensor, p_r: Tensor, p_x: Tensor, grid: Grid
) -> dict[str, Tensor]:
    """Scores of one state against the autoencoded truth `r`, (C,) each."""
    errors = {"rmse": metrics.rmse, "nrmse": metrics.nrmse, "vrmse": metrics.vrmse}
    values = {name: _nan_to_inf(f(r, x, x.ndim - 1, grid.volumes)) for name, f in errors.items()}
    values |= _banded("spectrum", _nan_to_inf(metrics.spectrum_error(p_r, p_x, grid.shape)))
    return {f"{name}_autoencoded": value for name, value in values.items()}


def _score_ensemble(u: Tensor, v: Tensor, grid: Grid) -> Scores:
    spatial, volumes = u.ndim - 1, grid.volumes
    mean = _score_state(u, v.mean(dim=0, keepdim=True), grid)
    ranks = metrics.rank_histogram(u, v, spatial)
    own = _one_lead(
        {
            "spread": _nan_to_inf(metrics.spread(v, spatial, volumes)),
            "skill": _nan_to_inf(metrics.skill(u, v, spatial, volumes)),
            "spread_skill": metrics.spread_skill_ratio(u, v, spatial, volumes),
            "crps": _nan_to_inf(metrics.fair_crps(u, v, spatial, volumes)),
            "energy": _nan_to_inf(metrics.energy_score(u, v, spatial, volumes)),
            "coverage": metrics.coverage(ranks)[:, 0],
        },
        binned={"rank": ranks},
    )
    return Scores(mean.values | own.values, mean.joint, mean.binned | own.binned)


def _banded(name: str, x: Tensor) -> dict[str, Tensor]:
    """(C, 3) -> name_low, name_mid, name_high (C,)."""
    return {f"{name}_{band}": x[:, i] for i, band in enumerate(metrics.BANDS)}


def _nan_to_inf(error: Tensor) -> Tensor:
    """Replaces NaN by infinity."""
    return torch.where(error.isnan(), torch.inf, error)
