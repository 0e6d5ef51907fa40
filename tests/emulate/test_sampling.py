"""Samplers on Gaussian data, whose denoiser and flow have closed forms."""

import math

import pytest
import torch
from azula.sample import zABSampler
from torch import Tensor, nn

from lola_ds.emulate import sample
from lola_ds.emulate.adams_bashforth import ABSampler
from lola_ds.emulate.sampling import SAMPLERS
from lola_ds.models.denoiser import Posterior
from lola_ds.models.schedules import make_schedule

MEAN, STD = 0.7, 0.3
NOTHING = torch.zeros(1, 1, 1, 1, dtype=torch.bool)


class Gaussian(nn.Module):
    r"""The exact denoiser of x ~ N(MEAN, STD²), each value independent.

    .. math:: \mathbb{E}[x \mid x_t] = m
        + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2} (x_t - \alpha m)
    """

    def __init__(self, schedule: str = "log_linear") -> None:
        super().__init__()
        self.schedule = make_schedule({"name": schedule})

    def forward(
        self, x_t: Tensor, t: Tensor, mask: Tensor | None = None, label: Tensor | None = None
    ) -> Posterior:
        alpha, sigma = (s.to(x_t) for s in self.schedule(t))
        total = (alpha * STD) ** 2 + sigma**2
        mean = MEAN + alpha * STD**2 / total * (x_t - alpha * MEAN)
        return Posterior(mean=mean, var=sigma**2 * STD**2 / total, output=mean)


def exact_flow(denoiser: Gaussian, x_1: Tensor) -> Tensor:
    """The end of the probability flow from x_1: quantiles are kept."""
    scale, mean = [], []
    for t in (0.0, 1.0):
        alpha, sigma = (float(s) for s in denoiser.schedule(torch.tensor(t)))
        scale.append(math.sqrt((alpha * STD) ** 2 + sigma**2))
        mean.append(alpha * MEAN)
    return mean[0] + scale[0] * (x_1 - mean[1]) / scale[1]


@pytest.mark.parametrize("schedule", ["log_linear", "log_logit", "rectified"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [("ab", 2.5), ("vab", 2.8), ("eab", 2.2), ("xeab", 2.7), ("heun", 1.9), ("ddim", 0.9)],
)
def test_deterministic_samplers_converge_to_the_flow(
    schedule: str, sampler: str, order: float
) -> None:
    """Multi-step samplers are of order 3, but start with one step of order 1 and one of 2."""
    denoiser = Gaussian(schedule)
    _, sigma_1 = denoiser.schedule(torch.tensor(1.0))
    x_1 = sigma_1 * torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 9, 1)
    exact = exact_flow(denoiser, x_1)
    errors = []
    for steps in (64, 256):
        x_0 = sample(denoiser, NOTHING, x_1, sampler=sampler, steps=steps, x_1=x_1)
        errors.append((x_0 - exact).abs().max().item())
    assert errors[1] < 0.05
    assert errors[1] < 1e-5 or math.log(errors[0] / errors[1], 4) > order


@pytest.mark.parametrize("schedule", ["log_linear", "log_logit", "rectified"])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_adams_bashforth_is_that_of_azula(schedule: str, steps: int) -> None:
    denoiser = Gaussian(schedule)
    x_1 = denoiser.schedule(torch.tensor(1.0))[1] * torch.randn(2, 1, 9, 4, dtype=torch.float64)
    options = {"order": 3, "steps": steps, "silent": True, "dtype": torch.float64}
    expected = zABSampler(denoiser, **options)(x_1)
    torch.testing.assert_close(ABSampler(denoiser, **options)(x_1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_moments_of_the_data(sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_obs = torch.zeros(1, 1, 4000, 1)
    x_0 = sample(Gaussian(), NOTHING, x_obs, sampler=sampler, steps=128, generator=generator)
    assert abs(x_0.mean() - MEAN) < 0.03
    assert abs(x_0.std() - STD) < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_comes_from_the_generator(sampler: str) -> None:
    x_obs = torch.zeros(2, 1, 3, 4)
    before = torch.get_rng_state()
    draws = [
        sample(
            Gaussian(),
            NOTHING,
            x_obs,
            sampler=sampler,
            steps=4,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_values_end_within_the_last_noise(sampler: str) -> None:
    mask = (torch.arange(3) < 1).view(1, 1, 3, 1)
    x_obs = torch.randn(2, 1, 3, 4)
    unread = torch.where(mask, x_obs, torch.nan)
    generator = torch.Generator().manual_seed(0)
    x_0 = sample(Gaussian(), mask, unread, sampler=sampler, steps=16, generator=generator)
    assert x_0.isfinite().all()
    assert (x_0 - x_obs)[:, :, 0].abs().max() < 5e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "rk4"}, "rk4"),
        ({"steps": 0}, "steps=0"),
        ({"guidance_scale": 2.0}, "needs a label"),
    ],
)
def test_sample_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(Gaussian(), NOTHING, torch.zeros(1, 1, 1, 1), **options)
