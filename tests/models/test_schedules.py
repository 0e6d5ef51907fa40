"""Noise schedules and time priors against their formulas."""

import math

import pytest
import torch

from lola_ds.models.schedules import TimePrior, make_schedule

TIMES = [0.0, 0.1, 0.5, 0.9, 1.0]


def log_linear(t: float) -> tuple[float, float]:
    return 1.0, 1e-3 ** (1 - t) * 1e3**t


def log_logit(t: float) -> tuple[float, float]:
    low, high = 1e-3 / (1 + 1e-3), 1e3 / (1 + 1e3)
    p = t * (high - low) + low
    return 1.0, math.exp(0.8 * math.log(p / (1 - p)) + 0.2)


def rectified(t: float) -> tuple[float, float]:
    return 1 - t + 1e-3 * t, t + 1e-3 * (1 - t)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"name": "log_linear"}, log_linear),
        ({"name": "log_logit", "scale": 0.8, "shift": 0.2}, log_logit),
        ({"name": "rectified"}, rectified),
        (
            {"name": "rectified", "alpha_min": 0.0, "sigma_min": 0.0},
            lambda t: (1 - t, t),
        ),
    ],
)
def test_schedules_follow_their_formulas(config: dict, reference) -> None:
    t = torch.tensor(TIMES, dtype=torch.float64)
    alpha, sigma = make_schedule(config)(t)
    expected = torch.tensor([reference(u) for u in TIMES], dtype=torch.float64)
    torch.testing.assert_close(torch.stack((alpha, sigma), dim=1), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["log_linear", "log_logit", "rectified"])
def test_schedules_in_float32_decrease_the_signal_to_noise_ratio(name: str) -> None:
    alpha, sigma = make_schedule({"name": name})(torch.linspace(0, 1, 65))
    assert alpha.dtype == sigma.dtype == torch.float32
    ratio = alpha / sigma
    assert (ratio[1:] < ratio[:-1]).all()
    assert ratio.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosine"}, "cosine"),
        ({}, "None"),
        ({"name": "rectified", "sigma_max": 1.0}, r"schedule\.sigma_max is unknown"),
        ({"name": "log_linear", "sigma_min": 2.0, "sigma_max": 1.0}, "increasing"),
        ({"name": "rectified", "sigma_min": 1.0}, "sigma_min=1.0"),
    ],
)
def test_make_schedule_refuses(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(config)


def beta_cdf(t: float, a: float, b: float, n: int = 4000) -> float:
    """The cumulative function of a beta law, by the midpoint rule."""
    norm = math.gamma(a + b) / math.gamma(a) / math.gamma(b)
    points = [(i + 0.5) / n * t for i in range(n)]
    return norm * t / n * sum(u ** (a - 1) * (1 - u) ** (b - 1) for u in points)


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        (TimePrior("uniform", 0.2, 0.7), lambda t: min(max((t - 0.2) / 0.5, 0), 1)),
        (TimePrior("beta", 3.0, 2.0), lambda t: beta_cdf(t, 3.0, 2.0)),
        (TimePrior("kumaraswamy", 2.0, 3.0), lambda t: 1 - (1 - t**2) ** 3),
        (TimePrior("triangle"), lambda t: 2 * t**2 if t < 0.5 else 1 - 2 * (1 - t) ** 2),
    ],
)
def test_time_priors_follow_their_laws(prior: TimePrior, cdf) -> None:
    """Kolmogorov–Smirnov: the largest gap stays under its 1e-4 quantile, 2.2 / sqrt(n)."""
    n = 2000
    u = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = prior.draw(u).sort().values.tolist()
    gap = max(abs(cdf(draws[i]) - (i + 0.5) / n) for i in range(0, n, 10))
    assert gap < 2.2 / math.sqrt(n)
    assert draws[0] >= 0
    assert draws[-1] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("normal",), "normal"),
        (("uniform", 0.5, 0.5), "uniform"),
        (("beta", 0.0, 1.0), "beta"),
    ],
)
def test_time_prior_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimePrior(*arguments)
