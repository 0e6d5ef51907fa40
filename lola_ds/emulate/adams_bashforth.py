r"""Adams–Bashforth sampling whose coefficients are known before the first step.

With :math:`u = \sigma / \alpha` and :math:`z(x_t) = (x_t - \alpha_t \mu(x_t)) / \sigma_t`, a step
of order n is

.. math:: \frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \sum_{i=1}^n w_i \, z(x_{t_i}) \qquad
    w_i = \int_{u_t}^{u_s} \ell_i(u) \, du

with the Lagrange polynomials :math:`\ell_i` of the last n values of u. azula's sampler, of which
this is a quicker form, solves a linear system on the device at each step, and waits for it: here
all weights are numbers before the first step, so that the device never waits, and nothing keeps the
loop out of a CUDA graph.

References:
    | Fast Sampling of Diffusion Models with Exponential Integrator (Zhang et al., 2023)
    | https://arxiv.org/abs/2204.13902
"""

from __future__ import annotations

import torch
from azula.sample import zABSampler
from torch import Tensor


def step_weights(u: Tensor, order: int) -> list[list[float]]:
    """The weights of every step, oldest value first.

    Arguments:
        u: the noise-to-signal ratios at the times of the solution, with shape (steps + 1,).
        order: the order n; the first steps have less history and use what there is.
    """
    u = u.double()
    weights = []
    for i in range(len(u) - 1):
        n = min(order, i + 1)
        k = torch.arange(n)
        powers = u[i + 1 - n : i + 1] ** k[:, None]
        integrals = (u[i + 1] ** (k + 1) - u[i] ** (k + 1)) / (k + 1)
        weights.append(torch.linalg.solve(powers, integrals).tolist())
    return weights


class ABSampler(zABSampler):
    """As azula's `zABSampler`."""

    @torch.no_grad()
    def __call__(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        """Takes the state (B, C, L, *S) from the first time to the last."""
        times = self.timesteps.cpu()
        alpha, sigma = self.denoiser.schedule(times)
        weights = step_weights(sigma / alpha, self.order)
        alphas, sigmas = alpha.tolist(), sigma.tolist()
        history: list[Tensor] = []
        for i, t in enumerate(times[:-1].to(x.device).unbind()):
            mean = self.denoiser(x, t, **kwargs).mean
            z = torch.sub(x, mean, alpha=alphas[i]) / sigmas[i]
            history = [*history, z][-self.order :]
            x = alphas[i + 1] / alphas[i] * x
            for value, weight in zip(history, weights[i], strict=True):
                x = x.add_(value, alpha=alphas[i + 1] * weight)
        return x
