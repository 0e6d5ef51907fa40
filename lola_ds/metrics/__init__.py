"""Metrics of forecasts, field by field: pointwise errors, ensemble scores, spectra.

All take torch tensors with the spatial axes last and say how many there are; see each module's
docstring for symbols, units and sources.
"""

from .ensemble import (
    fair_crps,
    finite_ensemble_factor,
    skill,
    spread,
    spread_skill_ratio,
)
from .errors import nrmse, rmse, spatial_mean, vrmse
from .spectra import (
    BANDS,
    band_edges,
    band_mean,
    power_spectrum,
    spectral_correlation,
    spectrum_error,
)

__all__ = [
    "BANDS",
    "band_edges",
    "band_mean",
    "fair_crps",
    "finite_ensemble_factor",
    "nrmse",
    "power_spectrum",
    "rmse",
    "skill",
    "spatial_mean",
    "spectral_correlation",
    "spectrum_error",
    "spread",
    "spread_skill_ratio",
    "vrmse",
]
