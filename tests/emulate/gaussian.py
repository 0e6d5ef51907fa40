"""Correlated Gaussian data: its denoiser, its flow and its posterior have closed forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lola_ds.models.denoiser import Posterior
from lola_ds.models.schedules import make_schedule


class GaussianDenoiser(nn.Module):
    r"""The exact denoiser of windows x ~ N(m, K), correlated across all their values.

    .. math:: \mathbb{E}[x \mid x_t] = m + \alpha K (\alpha^2 K + \sigma^2 I)^{-1} (x_t - \alpha m)

    Known values are those at which the mask is True; the others are conditioned on them.

    Arguments:
        mean: m, with shape (C, L, *S).
        cov: K, with shape (D, D), D being the number of values.
        schedule: the name of the noise schedule.
    """

    def __init__(self, mean: Tensor, cov: Tensor, schedule: str = "log_linear") -> None:
        super().__init__()
        self.mean, self.cov = mean, cov
        self.schedule = make_schedule({"name": schedule})

    def forward(
        self, x_t: Tensor, t: Tensor, mask: Tensor | None = None, label: Tensor | None = None
    ) -> Posterior:
        alpha, sigma = (s.to(x_t) for s in self.schedule(t))
        mean, cov = self.mean.flatten().to(x_t), self.cov.to(x_t)
        known = torch.zeros_like(mean, dtype=torch.bool)
        if mask is not None:
            known = mask.expand_as(x_t)[0].flatten()
        # A known value, at sqrt(alpha² + sigma²) x, is a measurement without noise.
        scale = torch.where(known, (alpha**2 + sigma**2).sqrt(), alpha)
        noise = torch.where(known, 0.0, sigma**2)
        gain = torch.linalg.solve(
            scale[:, None] * cov * scale + noise.diag(), scale[:, None] * cov, left=True
        )
        x = mean + (x_t.flatten(1) - scale * mean) @ gain
        return Posterior(mean=x.view_as(x_t), var=torch.ones_like(x_t), output=x_t)


def random_gaussian(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mean (*shape) and a covariance of all values, of variances about 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    return mean, root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


def condition(
    mean: Tensor, cov: Tensor, matrix: Tensor, noise: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean and covariance of x ~ N(m, K) given y = H x + N(0, diag(noise))."""
    gain = torch.linalg.solve(matrix @ cov @ matrix.T + noise.diag(), matrix @ cov).T
    posterior = mean.flatten() + gain @ (y.flatten() - matrix @ mean.flatten())
    return posterior, cov - gain @ matrix @ cov
