"""Metrics of forecasts, field by field: pointwise errors, ensemble scores, spectra, distributions.

All functions take tensors whose last `spatial` axes are the spatial axes *S. The docstrings of the
modules have symbols and references.
"""

from lola_ds.metrics.distributions import sliced_wasserstein, wasserstein
from lola_ds.metrics.ensemble import (
    coverage,
    energy_score,
    fair_crps,
    finite_ensemble_factor,
    nominal_coverage,
    rank_histogram,
    skill,
    spread,
    spread_skill_ratio,
)
from lola_ds.metrics.errors import (
    correlation,
    mae,
    nrmse,
    rmse,
    spatial_mean,
    total_error,
    vrmse,
    worst_error,
)
from lola_ds.metrics.grid import Grid
from lola_ds.metrics.horizon import correlation_time
from lola_ds.metrics.spectra import (
    BANDS,
    band_edges,
    band_mean,
    power_spectrum,
    spectral_correlation,
    spectrum_error,
)

__all__ = [
    "BANDS",
    "Grid",
    "band_edges",
    "band_mean",
    "correlation",
    "correlation_time",
    "coverage",
    "energy_score",
    "fair_crps",
    "finite_ensemble_factor",
    "mae",
    "nominal_coverage",
    "nrmse",
    "power_spectrum",
    "rank_histogram",
    "rmse",
    "skill",
    "sliced_wasserstein",
    "spatial_mean",
    "spectral_correlation",
    "spectrum_error",
    "spread",
    "spread_skill_ratio",
    "total_error",
    "vrmse",
    "wasserstein",
    "worst_error",
]
