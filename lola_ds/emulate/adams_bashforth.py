r"""Adams–Bashforth sampling whose coefficients are known before the first step.

With :math:`u = \sigma / \alpha` and :math:`z(x_t) = (x_t - \alpha_t \mu(x_t)) / \sigma_t`, a step
of order n is

.. math:: \frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \sum_{i=1}^n w_i \, z(x_{t_i}) \qquad
    w_i = \int_{u_t}^{u_s} \ell_i(u) \, du

with the Lagrange polynomials :math:`\ell_i` of the last n values of u. azula's sampler
solves a linear system on the device at each step and waits for it. Here all weights are computed
before the first step, nothing is copied between processor and device, and the loop can be captured
in a CUDA graph; see `lola_ds.emulate.cuda_graph`.

References:
    | Fast Sampling of Diffusion Models with Exponential Integrator (Zhang et al., 2023)
    | https://arxiv.org/abs/2204.13902
"""

from __future__ import annotations

import torch
from azula.sample import zABSampler
from torch import Tensor

__all__ = ["ABSampler", "step_weights"]


def step_weights(u: Tensor, order: int) -> list[list[float]]:
    """Computes the weights w of every step, oldest value first.

    Arguments:
        u: The noise-to-signal ratios at the times of the solution, with shape (steps + 1,).
        order: The order n; the first steps have less history and use what there is.

    Returns:
        A list of min(i + 1, n) weights for each step i.
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
    """Adams–Bashforth sampler of order n, which computes the same as azula's `zABSampler`."""

    def plan(self) -> list[tuple[float, float, float, float, list[float]]]:
        """Returns each step's time, alpha and sigma there, alpha after it, and its weights."""
        times = self.timesteps.cpu()
        alpha, sigma = self.denoiser.schedule(times)
        weights = step_weights(sigma / alpha, self.order)
        alphas = alpha.tolist()
        return list(zip(times.tolist(), alphas, sigma.tolist(), alphas[1:], weights))

    @torch.no_grad()
    def __call__(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        """Integrates the state from the first time to the last.

        Arguments:
            x: The state, with shape (B, C, L, *S).
            kwargs: Arguments of the denoiser.

        Returns:
            The state at the last time, with the same shape.
        """
        history: list[Tensor] = []
        for time, alpha_t, sigma_t, alpha_s, weights in self.plan():
            t = torch.full((), time, dtype=self.timesteps.dtype, device=x.device)
            mean = self.denoiser(x, t, **kwargs).mean
            z = torch.sub(x, mean, alpha=alpha_t) / sigma_t
            history = [*history, z][-self.order :]
            x = alpha_s / alpha_t * x
            for value, weight in zip(history, weights, strict=True):
                x = x.add_(value, alpha=alpha_s * weight)
        return x
