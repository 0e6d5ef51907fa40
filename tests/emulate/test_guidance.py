"""Guidance on Gaussian data, whose posterior given observations is known; operators; rollouts."""

import math
from types import SimpleNamespace

import pytest
import torch
from gaussian import GaussianDenoiser, condition, random_gaussian
from torch import Tensor
from torch.autograd.functional import jacobian

from lola_ds.emulate import SamplingOptions, make_step, rollout, sample
from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.guidance import (
    Downscale,
    Guidance,
    Guide,
    Observations,
    Stripe,
    Subsample,
    conjugate_gradients,
    make_guidance,
    observe,
)
from lola_ds.emulate.sampling import ConditionedDenoiser
from lola_ds.fields import Standardize
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate

NOTHING = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
C, L, S = 2, 2, 4


def as_matrix(guidance: Guidance, frames: list[int]) -> Tensor:
    """The operator on a window (C, L, S) as a matrix, with shape (D, C L S)."""
    eye = torch.eye(C * L * S, dtype=torch.float64).view(-1, C, L, S)
    return torch.stack([guidance.operator(eye[:, :, k]).flatten(1) for k in frames], 1).flatten(1).T


def guided(method: str, denoiser: GaussianDenoiser, mask: Tensor, x_obs: Tensor, **options):
    """A conditioned denoiser that sees two of four cells of the second frame; H and y too."""
    guidance = make_guidance(method=method, operator="subsample", every=2, std=0.3, **options)
    y = Observations(torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 2, 2), (1,))
    conditioned = ConditionedDenoiser(denoiser, mask, x_obs)
    return Guide(guidance, y).at(0)(conditioned), as_matrix(guidance, [1]), y.values


@pytest.mark.parametrize("solver", ["gmres", "cg"])
@pytest.mark.parametrize("schedule", ["log_linear", "rectified"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_mmps_is_exact_for_gaussian_data(solver: str, schedule: str, t: float) -> None:
    mean, cov = random_gaussian(C, L, S)
    denoiser, x_obs = GaussianDenoiser(mean, cov, schedule), torch.zeros(3, C, L, S).double()
    wrapped, H, y = guided("mmps", denoiser, NOTHING, x_obs, solver=solver, iterations=4)
    alpha, sigma = denoiser.schedule(torch.tensor(t, dtype=torch.float64))
    x_t = alpha * mean + torch.randn(3, C, L, S).double() * (alpha**2 + sigma**2).sqrt()

    eye = torch.eye(len(cov)).double()
    both = torch.cat((alpha * eye, H))
    noise = torch.cat((sigma**2 * torch.ones(len(eye)), torch.full((len(H),), 0.09))).double()
    found = wrapped(x_t, torch.tensor(t, dtype=torch.float64)).mean
    for i in range(3):
        exact, _ = condition(mean, cov, both, noise, torch.cat((x_t[i].flatten(), y.flatten())))
        torch.testing.assert_close(found[i].flatten(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_score_based_guidance_is_exact_for_white_data(t: float) -> None:
    mean, cov = random_gaussian(C, L, S)[0], torch.eye(C * L * S).double()
    denoiser, x_obs = GaussianDenoiser(mean, cov), torch.zeros(1, C, L, S).double()
    wrapped, H, y = guided("sda", denoiser, NOTHING, x_obs, gamma=1.0)
    alpha, sigma = denoiser.schedule(torch.tensor(t, dtype=torch.float64))
    x_t = sigma * torch.randn(1, C, L, S).double()
    both = torch.cat((alpha * cov, H))
    noise = torch.cat((sigma**2 * torch.ones(len(cov)), torch.full((len(H),), 0.09))).double()
    exact, _ = condition(mean, cov, both, noise, torch.cat((x_t.flatten(), y.flatten())))
    found = wrapped(x_t, torch.tensor(t, dtype=torch.float64)).mean
    torch.testing.assert_close(found.flatten(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_guided_samples_follow_the_posterior(known: bool) -> None:
    """Mean and covariance given observations of frame 1 and, if `known`, frame 0 as it is."""
    mean, cov = random_gaussian(C, L, S)
    denoiser, n = GaussianDenoiser(mean, cov), 4000
    mask = (torch.arange(L) < known).view(1, 1, L, 1)
    x_obs = torch.full((n, C, L, S), 0.4, dtype=torch.float64)
    guidance = make_guidance(operator="subsample", every=2, std=0.3, iterations=4)
    y = torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    sigma_1 = denoiser.schedule(torch.tensor(1.0))[1]
    x = sample(
        denoiser,
        mask,
        x_obs,
        sampler="eab",
        steps=64,
        x_1=sigma_1 * torch.randn(x_obs.shape, generator=generator, dtype=torch.float64),
        generator=generator,
        guide=Guide(guidance, Observations(y, (1,))).at(0),
    )
    H, noise, seen = as_matrix(guidance, [1]), torch.full((4,), 0.09).double(), y.flatten()
    if known:
        rows = torch.eye(len(cov)).double()[mask.expand(1, C, L, S).flatten()]
        H, seen = torch.cat((rows, H)), torch.cat((x_obs[0, :, 0].flatten(), seen))
        noise = torch.cat((torch.zeros(len(rows)).double(), noise))
    exact_mean, exact_cov = condition(mean, cov, H, noise, seen)
    found = x.flatten(1)
    deviation = exact_cov.diag().clamp(min=0).sqrt()
    assert ((found.mean(0) - exact_mean).abs() <= 5 * deviation / math.sqrt(n) + 0.02).all()
    assert (found.T.cov() - exact_cov).abs().max() < 0.06 * exact_cov.max()
    prior = cov.diag().sqrt()
    assert (deviation < 0.9 * prior).any()  # the observations do say something


def test_conjugate_gradients_stay_finite_where_curvature_is_negative() -> None:
    """Exact for a positive matrix after as many iterations as rows; else a row stops."""
    root = torch.randn(2, 4, 4, dtype=torch.float64)
    positive = root @ root.mT + 0.1 * torch.eye(4)
    matrices = torch.stack((positive[0], -positive[1], torch.zeros(4, 4)))
    b = torch.randn(3, 4, dtype=torch.float64)
    b[2] = 0
    x = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, iterations=6)
    torch.testing.assert_close(x[0], torch.linalg.solve(positive[0], b[0]))
    assert not x[1:].any()


def test_unobserved_windows_are_not_guided() -> None:
    denoiser = GaussianDenoiser(*random_gaussian(C, L, S))
    guidance, y = Guidance(Subsample(2)), Observations(torch.zeros(2, 2, 2), (0, 5))
    first_known = (torch.arange(L) < 1).view(1, 1, L, 1)
    conditioned = ConditionedDenoiser(denoiser, first_known, torch.zeros(1, C, L, S))
    assert Guide(guidance, y).at(0)(conditioned) is conditioned  # frame 0 is known
    assert Guide(guidance, y).at(2)(conditioned) is conditioned  # frames 2 and 3
    assert Guide(guidance, y).at(4)(conditioned) is not conditioned  # frame 5 is unknown
    assert Guide(guidance, y, origin=-3).at(1)(conditioned) is not conditioned


def test_operators_see_what_they_say() -> None:
    x = torch.randn(2, 3, 7, 6)
    assert torch.equal(Subsample(3)(x), x[:, :, [0, 3, 6]][..., [0, 3]])
    block = Downscale(2)(x[:, :, :6])
    assert torch.allclose(block[1, 2, 1, 2], x[1, 2, 2:4, 4:6].mean())
    assert block.shape == (2, 3, 3, 3)
    inside = {x[0, 0, i, j].item() for i in (2, 3, 4) for j in (2, 3)}
    seen = set(Stripe(2)(x)[0, 0].tolist())
    assert seen == set(x[0, 0].flatten().tolist()) - inside
    assert Stripe(1)(torch.randn(1, 2, 3, 4, 5)).shape == (1, 2, 3 * 4 * 5 - 1 * 2 * 3)


@pytest.mark.parametrize("operator", [Subsample(2), Downscale(2), Stripe(1)])
def test_operators_are_linear_and_differentiable(operator) -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(operator, x.requires_grad_(), atol=1e-6)


def test_observing_adds_noise_of_its_deviation() -> None:
    guidance, x = Guidance(Subsample(1), std=0.5), torch.zeros(1, 1, 100, 100)
    seen = observe(x, guidance, [3], torch.Generator().manual_seed(0))
    assert abs(seen.values.std() - 0.5) < 0.02
    assert seen.frames == (3,)


def test_guidance_describes_itself() -> None:
    settings = make_guidance(operator="stripe", width=3, std=0.1, iterations=2).describe()
    assert settings == {
        "method": "mmps",
        "operator": "stripe",
        "width": 3,
        "std": 0.1,
        "units": "standardised",
        "solver": "gmres",
        "iterations": 2,
    }

    def corner(x: Tensor) -> Tensor:
        return x[..., 0, 0]

    settings = make_guidance(method="sda", operator=corner, units="physical").describe()
    assert settings["operator"].endswith("corner")
    assert settings["gamma"] == 10.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dps"}, "method='dps'"),
        ({"operator": "fourier"}, "operator='fourier'"),
        ({"factor": 2}, "factor is unknown for this operator; known: every"),
        ({"operator": abs, "every": 2}, "every is unknown"),
        ({"every": 0}, "every=0"),
        ({"std": 0.0}, r"std=0\.0"),
        ({"iterations": 0}, "iterations=0"),
        ({"units": "metres"}, "units='metres'"),
    ],
)
def test_guidance_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_guidance(**options)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="factor=3 does not divide the 4 cells of axis 0"):
        Downscale(3)(torch.zeros(1, 1, 4, 6))
    with pytest.raises(ValueError, match="2 observations were given for 1 frames"):
        Observations(torch.zeros(2, 3), (1,))
    with pytest.raises(ValueError, match="same frames"):
        Guide(Guidance(abs), [Observations(torch.zeros(1, 3), (i,)) for i in range(2)])
    with pytest.raises(ValueError, match="not a surrogate"):
        make_step(make_surrogate(channels=2, **TINY), options=SamplingOptions(guidance_scale=2.0))


TINY = {"hid_channels": 8, "hid_blocks": 1, "attention_heads": 2, "emb_features": 8, "spatial": 2}


@pytest.mark.parametrize("method", ["mmps", "sda"])
def test_rollouts_are_guided_window_by_window(method: str) -> None:
    """A network that knows nothing of its data is drawn to what is observed, frame by frame."""
    torch.manual_seed(0)
    model = make_denoiser(channels=1, schedule={"name": "log_linear"}, **TINY).eval()
    model.requires_grad_(False)
    truth = torch.arange(10.0).view(1, 10, 1).expand(1, 10, 4) / 5 - 1
    guidance = make_guidance(method=method, operator="subsample", every=1, std=0.01, gamma=1.0)
    seen = [k for k in range(10) if k != 5]
    y = observe(truth[:, seen].transpose(0, 1), guidance, seen)
    guide = Guide(guidance, y)
    step = make_step(model, options=SamplingOptions(sampler="eab"), guide=guide)
    x = rollout(step, truth[:, :1], window=4, frames=10, members=3)
    error = (x - truth).abs()
    assert error[:, :, seen].max() < 0.1
    assert error[:, :, 5].max() > 0.3


def make_emulator() -> Emulator:
    """An emulator of latents whose decoder has attention and wraps."""
    torch.manual_seed(0)
    options = {"hid_channels": [4, 8], "hid_blocks": [1, 1], "attention_heads": {1: 2}}
    autoencoder = make_autoencoder(
        pix_channels=2, lat_channels=3, periodic=True, identity_init=False, **options
    )
    model = make_denoiser(channels=3, schedule={"name": "log_linear"}, **{**TINY, "spatial": 3})
    for module in (autoencoder, model):
        module.requires_grad_(False)
    standardize = Standardize([0.5, 0.0], [0.5, 2.0], {0: "log1p"})
    return Emulator(model, autoencoder, standardize, {"length": 3, "stride": 1})


@pytest.mark.parametrize("units", ["physical", "standardised"])
def test_latents_are_guided_by_what_they_decode_to(units: str) -> None:
    """The mean shifts by V Aᵀ (s² I + A V Aᵀ)⁻¹ (y - A x), with the Jacobians of all of A."""
    emulator = make_emulator()
    truth = emulator.codec.standardize.inverse(torch.randn(1, 2, 2, 8, 8))[0]
    guidance = make_guidance(operator="subsample", every=4, std=0.3, units=units, iterations=8)
    y = emulator.observe(truth, guidance, frames=[2])
    guide = Guide(guidance, y, lambda z: emulator.codec.states(z, units))
    z, t = torch.randn(1, 3, 3, 4, 4).double(), torch.tensor(0.5, dtype=torch.float64)
    conditioned = ConditionedDenoiser(emulator.model, NOTHING[None], torch.zeros_like(z))
    found = guide.at(0)(conditioned)(z, t).mean

    def mean(z: Tensor) -> Tensor:
        return conditioned(z, t).mean

    def measure(z: Tensor) -> Tensor:
        x = emulator.codec.states(z[:, :, 2], units)
        return x[:, :, ::4, ::4].flatten()

    alpha, sigma = emulator.model.schedule(t)
    V = sigma**2 / alpha * jacobian(mean, z).reshape(z.numel(), z.numel())
    x_hat = mean(z)
    A = jacobian(measure, x_hat).reshape(-1, z.numel()).double()
    weight = torch.linalg.inv(0.09 * torch.eye(len(A)) + A @ V.T @ A.T)
    shift = V.T @ A.T @ weight @ (y.values.flatten() - measure(x_hat)).double()
    torch.testing.assert_close((found - x_hat).flatten(), shift, rtol=2e-3, atol=2e-4)
    assert shift.abs().max() > 0.1


def test_an_emulator_is_guided_through_rollouts() -> None:
    emulator = make_emulator()
    truth = emulator.decode(2 * torch.randn(1, 3, 5, 4, 4))[0]
    guidance = make_guidance(operator="downscale", factor=4, std=0.01, iterations=3)
    y = emulator.observe(truth, guidance)
    assert y.frames == (1, 2, 3, 4, 5)
    options = {"members": 2, "sampling_steps": 16, "sampler": "eab"}
    free = emulator.rollout(truth[:, 0], None, 5, **options)
    forecast = emulator.rollout(
        truth[:, 0], None, 5, guidance=guidance, observations=y, batch=1, **options
    )

    def error(x: Tensor) -> Tensor:
        states = emulator.codec.standardize(x).transpose(1, 2)
        return torch.stack([Downscale(4)(m) - y.values for m in states]).square().mean().sqrt()

    assert error(forecast) < 0.5 * error(free)
    with pytest.raises(ValueError, match="both guidance and observations"):
        emulator.rollout(truth[:, 0], None, 5, guidance=guidance)
    with pytest.raises(ValueError, match="6 is not among 1 to 5"):
        emulator.observe(truth, guidance, frames=[2, 6])


def test_each_row_has_its_observations_and_guidance_scales_mix_means() -> None:
    values = torch.randn(3, 1, 1, 2)
    rows = [Observations(row, (1,)) for row in values]
    sees = Guide(Guidance(lambda x: x, method="sda"), rows).at(0)
    denoiser = GaussianDenoiser(*random_gaussian(1, 2, 2))
    conditioned = ConditionedDenoiser(denoiser, NOTHING, torch.zeros(3, 1, 2, 2))
    assert torch.equal(sees(conditioned).y, values.flatten(1))

    class Labelled(GaussianDenoiser):
        def forward(self, x_t, t, mask=None, label=None):
            return SimpleNamespace(mean=x_t * 0 + (2.0 if label is None else label[:, :, None]))

    mixed = Labelled(*random_gaussian(1, 2, 2))
    x, label = torch.zeros(3, 1, 2, 2), torch.full((3, 1, 1), 5.0)
    for weight, expected in [(1.0, 5.0), (0.0, 2.0), (1.5, 6.5)]:
        q = ConditionedDenoiser(mixed, NOTHING, x, label, weight)(x, torch.tensor(0.5))
        assert torch.equal(q.mean, torch.full_like(x, expected))
