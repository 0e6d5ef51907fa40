"""Denoisers: preconditioning against its formula, unit variances, known frames, precision."""

import math

import pytest
import torch
from torch import Tensor, nn

from lola_ds.models import Denoiser, make_denoiser
from lola_ds.models.schedules import make_schedule

TINY = {"channels": 2, "hid_channels": 8, "hid_blocks": 1, "attention_heads": 2, "emb_features": 8}
SCHEDULES = ["log_linear", "log_logit", "rectified"]


def make(schedule: str = "log_logit", **options: object) -> Denoiser:
    torch.manual_seed(0)
    return make_denoiser(**{**TINY, "schedule": {"name": schedule}, **options}).eval()


class Recorder(nn.Module):
    """A network that remembers its inputs and answers with given outputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        mask: Tensor | None,
        label: Tensor | None,
        keep_label: Tensor | None,
    ) -> Tensor:
        self.x, self.time = x, time
        return self.output


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_preconditioning_follows_its_formula(schedule: str) -> None:
    x_t, t = torch.randn(3, 1, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    network = Recorder(torch.randn_like(x_t))
    q = Denoiser(network, make_schedule({"name": schedule}))(x_t, t)
    alphas, sigmas = make_schedule({"name": schedule})(t.double())
    for i, (a, s) in enumerate(zip(alphas.tolist(), sigmas.tolist())):
        total = a * a + s * s
        torch.testing.assert_close(network.x[i], x_t[i] / math.sqrt(total), rtol=1e-4, atol=1e-5)
        assert math.isclose(network.time[i], 10 * math.log(s / a), rel_tol=1e-4, abs_tol=1e-4)
        mean = a / total * x_t[i] + s / math.sqrt(total) * network.output[i]
        torch.testing.assert_close(q.mean[i], mean, rtol=1e-4, atol=1e-5)
        assert math.isclose(q.var[i], s * s / total, rel_tol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.7, 1.0])
def test_inputs_and_targets_have_unit_variance(schedule: str, t: float) -> None:
    """For data of unit variance, c_in x_t and (x - c_skip x_t) / c_out have unit variance."""
    torch.manual_seed(0)
    x, z = torch.randn(2, 1, 1, 1, 200, 200, dtype=torch.float64).unbind(0)
    time = torch.tensor([t], dtype=torch.float64)
    denoiser = Denoiser(Recorder(torch.zeros_like(x)), make_schedule({"name": schedule}))
    alpha, sigma = denoiser.schedule(time)
    q = denoiser(alpha * x + sigma * z, time)
    assert abs(denoiser.backbone.x.std() - 1) < 0.02
    assert abs(((x - q.mean) / q.var.sqrt()).std() - 1) < 0.02


def test_known_frames_enter_clean() -> None:
    """At sqrt(alpha² + sigma²) x, the network sees x."""
    denoiser, x = (
        Denoiser(Recorder(torch.zeros(1)), make_schedule({"name": "log_logit"})),
        torch.randn(1, 1, 2, 3),
    )
    t = torch.tensor([0.8])
    alpha, sigma = denoiser.schedule(t)
    denoiser((alpha**2 + sigma**2).sqrt() * x, t)
    torch.testing.assert_close(denoiser.backbone.x, x)


def test_scalar_and_batched_times_agree() -> None:
    denoiser = make(label_features=3)
    x_t, label = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 3)
    one = denoiser(x_t, torch.tensor(0.4), label=label)
    two = denoiser(x_t, torch.tensor([0.4, 0.4]), label=label)
    assert torch.equal(one.mean, two.mean)


def test_no_mask_means_nothing_known() -> None:
    denoiser, x_t, t = make(), torch.randn(1, 2, 3, 2, 2), torch.tensor([0.4])
    nothing = torch.zeros(1, 1, 3, 1, 1, dtype=torch.bool)
    assert torch.equal(denoiser(x_t, t).mean, denoiser(x_t, t, mask=nothing).mean)
    everything = denoiser(x_t, t, mask=~nothing)
    assert not torch.equal(denoiser(x_t, t).mean, everything.mean)
    assert make(masked=False)(x_t, t).mean.shape == x_t.shape


def test_float64_states_keep_the_digits_of_the_output() -> None:
    """At the lowest noise, z = (x_t - alpha mean) / sigma recovers the network's output."""
    denoiser, t = make(), torch.tensor(0.0)
    x_t = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64)
    alpha, sigma = (s.double() for s in denoiser.schedule(t))
    q = denoiser(x_t, t)
    z = (x_t - alpha * q.mean) / sigma
    total = alpha**2 + sigma**2
    expected = sigma / total * x_t - alpha / total.sqrt() * q.output
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)


def test_labels_may_be_withheld_from_some_samples() -> None:
    denoiser = make(label_features=3, label_dropout=0.5)
    x_t, t, label = torch.randn(2, 2, 3, 2, 2), torch.tensor(0.4), torch.randn(2, 3)
    keep_label = torch.tensor([True, False])
    some = denoiser(x_t, t, label=label, keep_label=keep_label).mean
    torch.testing.assert_close(some[:1], denoiser(x_t, t, label=label).mean[:1])
    torch.testing.assert_close(some[1:], denoiser(x_t, t).mean[1:])
    assert not torch.allclose(some[1:], denoiser(x_t, t, label=label).mean[1:])


def test_a_denoiser_that_always_saw_labels_needs_them() -> None:
    with pytest.raises(ValueError, match="needs its label"):
        make(label_features=3)(torch.randn(1, 2, 3, 2, 2), torch.tensor(0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.0}, r"label_dropout=1\.0"),
        ({"heads": 3}, r"denoiser\.heads is unknown"),
        ({"schedule": {"name": "log_linear", "shift": 1.0}}, r"schedule\.shift"),
    ],
)
def test_make_denoiser_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser(**{**TINY, "schedule": {"name": "log_logit"}, **options})
