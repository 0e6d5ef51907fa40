"""Objectives: losses against loops in float64, weights, seeds, precision."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate
from lola_ds.objectives import (
    AutoencoderObjective,
    DiffusionObjective,
    Objective,
    SurrogateObjective,
    mae,
    mse,
    similarity,
    vmse,
    vrmse,
)

AE = {"pix_channels": 2, "lat_channels": 3, "hid_channels": [8, 12], "hid_blocks": [1, 1]}
VIT = {
    "channels": 2,
    "label_features": 3,
    "hid_channels": 16,
    "hid_blocks": 2,
    "attention_heads": 2,
    "emb_features": 16,
    "spatial": 3,
}
SCHEDULE = {"name": "log_logit"}


def make_batch(
    size: int = 4, frames: int = 4, seed: int = 0, dtype=torch.float32
) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        x=torch.randn(size, 2, frames, 4, 4, generator=generator).to(dtype),
        label=torch.randn(size, 3, generator=generator).to(dtype),
        seed=torch.arange(size) + 100,
        weight=torch.ones(size).to(dtype),
    )


def make_objective(task: str, **options: object) -> Objective:
    torch.manual_seed(0)
    if task == "autoencoder":
        return AutoencoderObjective(make_autoencoder(**AE, latent_noise=0.1), **options)
    if task == "surrogate":
        return SurrogateObjective(make_surrogate(**VIT), rho=0.5, **options)
    return DiffusionObjective(make_denoiser(**VIT, schedule=SCHEDULE), rho=0.5, **options)


TASKS = ["autoencoder", "surrogate", "diffusion"]


def test_losses_follow_their_formulas() -> None:
    x, y = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64).unbind(0)
    for i in range(3):
        squares, scaled, roots = [], [], []
        for c in range(2):
            a, b = x[i, c].flatten().tolist(), y[i, c].flatten().tolist()
            error = sum((u - v) ** 2 for u, v in zip(a, b)) / 20
            centre = sum(a) / 20
            variance = sum((u - centre) ** 2 for u in a) / 19
            squares.append(error)
            scaled.append(error / (variance + 1e-2))
            roots.append(math.sqrt(scaled[-1]))
        assert math.isclose(mse(x, y)[i], sum(squares) / 2)
        assert math.isclose(vmse(x, y)[i], sum(scaled) / 2)
        assert math.isclose(vrmse(x, y)[i], sum(roots) / 2)
        assert math.isclose(mae(x, y)[i], (x - y)[i].abs().mean())


def test_similarity_is_with_the_others_present() -> None:
    z = torch.randn(4, 2, 3, dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    flat = [v.flatten() for v in z]
    actual = similarity(z, weight)
    for i in range(4):
        others = [j for j in (0, 1, 3) if j != i]
        cosines = [flat[i] @ flat[j] / (flat[i].norm() * flat[j].norm()) for j in others]
        torch.testing.assert_close(actual[i], torch.stack(cosines).mean())
    assert similarity(z[:1], weight[:1]).tolist() == [0.0]


class Perfect(nn.Module):
    """A denoiser that knows the data: its output is the target, so its mean is the data."""

    label_dropout = 0.0

    def __init__(self, x: Tensor, schedule: object) -> None:
        super().__init__()
        self.x, self.schedule = x, schedule

    def forward(
        self, x_t: Tensor, t: Tensor, mask: Tensor, label: Tensor, keep_label: Tensor | None
    ) -> SimpleNamespace:
        alpha, sigma = (s.view(-1, 1, 1, 1, 1) for s in self.schedule(t))
        total = alpha**2 + sigma**2
        output = (self.x - alpha / total * x_t) / (sigma / total.sqrt())
        return SimpleNamespace(output=output)


def test_the_perfect_denoiser_has_no_loss() -> None:
    """The closed form of the target agrees with (x - c_skip x_t) / c_out, known frames or not."""
    batch = make_batch(dtype=torch.float64)
    schedule = make_denoiser(**VIT, schedule=SCHEDULE).schedule
    objective = DiffusionObjective(Perfect(batch.x, schedule), a=0.2, b=0.8)
    loss, _ = objective(batch)
    assert loss < 1e-6


def test_diffusion_loss_is_the_weighted_error_of_the_mean() -> None:
    """The loss equals the mean of (mean - x)² / var, with the posterior as the model gives it."""
    batch = make_batch()
    objective = make_objective("diffusion", a=0.3, b=0.7).eval()
    posteriors = []
    objective.model.register_forward_hook(lambda module, inputs, q: posteriors.append(q))
    loss, scalars = objective(batch)
    (q,) = posteriors
    expected = ((q.mean - batch.x).square() / q.var).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(scalars["denoising"], loss.detach())


def test_diffusion_loss_may_leave_out_known_frames() -> None:
    """The loss is the mean over unknown frames; outputs at known frames have no gradient."""
    batch = make_batch()
    objective = make_objective("diffusion", a=0.3, b=0.7, known_frames=False).eval()
    calls = []

    def remember(module, inputs, options, q) -> None:
        q.output.retain_grad()
        calls.append((options["mask"], q))

    objective.model.register_forward_hook(remember, with_kwargs=True)
    loss, _ = objective(batch)
    loss.backward()
    ((mask, q),) = calls
    mask = mask.expand_as(batch.x)
    errors = (q.mean - batch.x).square() / q.var
    expected = torch.stack([error[~known].mean() for error, known in zip(errors, mask)]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    assert not q.output.grad[mask].any()
    assert q.output.grad[~mask].all()


def test_labels_are_dropped_at_random_in_training_only() -> None:
    torch.manual_seed(0)
    objective = DiffusionObjective(make_denoiser(**VIT, schedule=SCHEDULE, label_dropout=0.3))
    kept = []
    objective.model.register_forward_hook(
        lambda module, inputs, options, q: kept.append(options["keep_label"]),
        with_kwargs=True,
    )
    batch = make_batch(size=200, frames=2)
    loss, _ = objective(batch)
    loss.backward()
    again, _ = objective(batch)
    assert torch.equal(again, loss)  # which labels are dropped depends on the samples' seeds alone
    assert 0.6 < kept[0].float().mean() < 0.8
    batch.label = torch.where(kept[0][:, None], batch.label, 1e3)
    torch.testing.assert_close(objective(batch)[0], loss)
    objective.eval()(batch)
    assert kept[-1] is None


def test_surrogate_loss_counts_all_frames() -> None:
    batch = make_batch()
    objective = make_objective("surrogate", loss="mae").eval()
    outputs = []
    objective.model.register_forward_hook(lambda module, inputs, y: outputs.append(y))
    loss, _ = objective(batch)
    torch.testing.assert_close(loss, (outputs[0] - batch.x).abs().mean())


@pytest.mark.parametrize("task", TASKS)
def test_samples_do_not_depend_on_their_batch(task: str) -> None:
    """Micro-batches of one average to the batch: noise, times and masks are each sample's own."""
    batch, objective = make_batch(), make_objective(task)
    loss, _ = objective(batch)
    parts = []
    for i in range(4):
        part = SimpleNamespace(**{key: value[i : i + 1] for key, value in vars(batch).items()})
        parts.append(objective(part)[0])
    torch.testing.assert_close(torch.stack(parts).mean(), loss, rtol=1e-4, atol=1e-5)
    assert torch.equal(objective(batch)[0], loss)
    batch.seed = batch.seed + 1
    assert not torch.equal(objective(batch)[0], loss)


@pytest.mark.parametrize("task", TASKS)
def test_padding_counts_for_nothing(task: str) -> None:
    batch, objective = make_batch(), make_objective(task)
    batch.weight = torch.tensor([2.0, 2.0, 0.0, 0.0])
    loss, _ = objective(batch)
    batch.x[2:] = 7.0
    torch.testing.assert_close(objective(batch)[0], loss)


@pytest.mark.parametrize("task", TASKS)
def test_bf16_stays_close_and_keeps_float32_weights(task: str) -> None:
    batch, objective = make_batch(), make_objective(task)
    low = copy.deepcopy(objective)
    low.precision = "bf16"
    loss, _ = objective(batch)
    rounded, _ = low(batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - loss).abs() < 2e-2 * loss.abs()
    rounded.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in low.parameters())


def test_autoencoder_terms_are_weighted() -> None:
    batch = make_batch()
    objective = make_objective(
        "autoencoder", losses=["mse", "similarity"], weights=[2.0, 0.5]
    ).eval()
    loss, scalars = objective(batch)
    torch.testing.assert_close(loss, 2 * scalars["mse"] + 0.5 * scalars["similarity"])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("autoencoder", {"losses": ["psnr"]}, "psnr"),
        ("autoencoder", {"losses": ["mse"], "weights": [1.0, 2.0]}, "same length"),
        ("autoencoder", {"precision": "fp8"}, "fp8"),
        ("surrogate", {"loss": "psnr"}, "psnr"),
        ("surrogate", {"law": "binomial"}, "binomial"),
        ("diffusion", {"distribution": "normal"}, "normal"),
    ],
)
def test_objectives_refuse(task: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_objective(task, **options)
