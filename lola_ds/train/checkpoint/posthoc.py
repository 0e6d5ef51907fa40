"""Reconstruction of power-law averages of any width from those that a training kept.

An average of exponent gamma_i after t_i steps weighs the weights of step tau by its profile

    p_i(tau) = (gamma_i + 1) tau^gamma_i / t_i^(gamma_i + 1),    0 <= tau <= t_i,

so the combination sum_i x_i average_i has the profile sum_i x_i p_i. The x_i that come nearest to a
wanted profile p, in the sense of least squares, solve A x = b with the inner products

    A_ij = <p_i, p_j>,    b_i = <p_i, p>,
    <p_i, p_j> = (gamma_i + 1) (gamma_j + 1) / ((gamma_i + gamma_j + 1) max(t_i, t_j)) r,

where r = (t_i / t_j)^gamma_j if t_i < t_j, else (t_j / t_i)^gamma_i.

References:
    | Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
    | section 3.2 and appendix C
    | https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Snapshot", "combine"]


@dataclass(frozen=True)
class Snapshot:
    """A power-law average of exponent `gamma` after a number of optimizer steps."""

    gamma: float
    steps: int


def combine(snapshots: Sequence[Snapshot], wanted: Snapshot) -> tuple[np.ndarray, float]:
    """Returns the combination of averages that is nearest to another average.

    Arguments:
        snapshots: The averages to combine, all different.
        wanted: The average to approximate.

    Returns:
        The weight of each snapshot, and the distance of the profiles: the root of the integral of
        their squared difference, relative to the wanted one.
    """
    gram = _inner_products(snapshots, snapshots)
    right = _inner_products(snapshots, [wanted])[:, 0]
    norm = _inner_products([wanted], [wanted])[0, 0]
    weights = np.linalg.lstsq(gram, right, rcond=1e-14)[0]
    left_over = norm - 2 * weights @ right + weights @ gram @ weights
    return weights, float(np.sqrt(max(0.0, left_over) / norm))


def _inner_products(one: Sequence[Snapshot], two: Sequence[Snapshot]) -> np.ndarray:
    """<p_i, p_j> for all pairs, shape (len(one), len(two)), float64."""
    gamma_i, t_i = np.array([(s.gamma, s.steps) for s in one], float).T[:, :, None]
    gamma_j, t_j = np.array([(s.gamma, s.steps) for s in two], float).T[:, None, :]
    ratio = np.where(t_i < t_j, (t_i / t_j) ** gamma_j, (t_j / t_i) ** gamma_i)
    numerator = (gamma_i + 1) * (gamma_j + 1) * ratio
    return numerator / ((gamma_i + gamma_j + 1) * np.maximum(t_i, t_j))
