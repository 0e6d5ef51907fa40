"""Rollouts: which frames a step sees, what comes back, what members depend on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lola_ds.emulate import SamplingOptions, make_step, rollout
from lola_ds.models import make_denoiser, make_surrogate

TINY = {
    "channels": 2,
    "label_features": 3,
    "hid_channels": 8,
    "hid_blocks": 1,
    "attention_heads": 2,
    "emb_features": 8,
    "spatial": 3,
}


def counting_step(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
    """Continues a linear trend: each frame is the one before plus one."""
    known = int(mask.sum())
    assert mask.shape == (1, 1, x_obs.shape[2], 1, 1)
    assert mask.flatten().tolist() == [True] * known + [False] * (x_obs.shape[2] - known)
    assert not x_obs[:, :, known:].any()
    ahead = torch.arange(1.0, x_obs.shape[2] - known + 1).view(1, 1, -1, 1, 1)
    return torch.cat((x_obs[:, :, :known], x_obs[:, :, known - 1 : known] + ahead), dim=2)


@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("overlap", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 5, 6, 13])
def test_windows_join(context: int, overlap: int, frames: int) -> None:
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(3, 4, 2, 2)
    y = rollout(counting_step, x, 5, frames, context, overlap, members=2)
    assert y.shape == (2, 3, frames, 2, 2)
    expected = torch.arange(float(frames)).view(1, 1, -1, 1, 1).expand_as(y)
    assert torch.equal(y, expected)


def test_windows_are_numbered_and_keep_the_overlap() -> None:
    seen = []

    def step(mask: Tensor, x_obs: Tensor, i: int) -> Tensor:
        seen.append((i, x_obs[0, 0, :2, 0, 0].tolist()))
        return counting_step(mask, x_obs, i)

    rollout(step, torch.zeros(1, 1, 1, 1), 4, 8, context=1, overlap=2)
    assert seen == [(0, [0.0, 0.0]), (1, [2.0, 3.0]), (2, [4.0, 5.0])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 5}, "context=5"),
        ({"overlap": 0}, "overlap=0"),
        ({"context": 3}, "only 2 are known"),
        ({"members": 0}, "members=0"),
        ({"frames": 0}, "frames=0"),
    ],
)
def test_rollout_refuses(options: dict, message: str) -> None:
    options = {"frames": 9, **options}
    with pytest.raises(ValueError, match=message):
        rollout(counting_step, torch.zeros(1, 2, 1, 1), window=5, **options)


def test_surrogate_step_returns_known_frames_as_they_are() -> None:
    model = make_surrogate(**TINY).eval()
    x, label = torch.randn(2, 3, 4, 4), torch.randn(3)
    y = rollout(make_step(model, label), x, window=4, frames=9, context=2)
    assert torch.equal(y[0, :, :2], x[:, :2])
    window = torch.cat((x[:, :2], torch.zeros(2, 2, 4, 4)), dim=1)[None]
    mask = (torch.arange(4) < 2).view(1, 1, 4, 1, 1)
    torch.testing.assert_close(y[:, :, 2:4], model(window, mask, label[None])[:, :, 2:])


def test_members_of_a_denoiser_differ_and_depend_on_the_seed_only() -> None:
    torch.manual_seed(0)
    model = make_denoiser(**TINY, schedule={"name": "log_logit"}).eval()
    x, label = torch.randn(2, 1, 4, 4), torch.randn(3)

    def run(members: int, seed: int = 0, rows: Any = None) -> Tensor:
        options = SamplingOptions(sampling_steps=3, seed=seed)
        step = make_step(model, label, options, rows=rows)
        return rollout(step, x, window=3, frames=6, members=members)

    y = run(3, seed=5)
    assert torch.equal(y[:, :, :1], x.expand(3, *x.shape))
    assert not torch.allclose(y[0], y[1], atol=1e-3)
    torch.testing.assert_close(run(3, seed=5), y)
    together = run(3, rows=[(5, 2), (6, 0), (5, 1)])
    torch.testing.assert_close(together[[2, 0]], y[1:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together[1:2], run(1, seed=6), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(run(3, seed=6), y, atol=1e-3)


def test_each_member_may_have_its_label() -> None:
    model = make_surrogate(**TINY).eval()
    x, labels = torch.randn(2, 1, 4, 4), torch.randn(2, 3)
    y = rollout(make_step(model, labels), x, window=3, frames=3, members=2)
    for i, label in enumerate(labels):
        alone = rollout(make_step(model, label), x, window=3, frames=3)
        torch.testing.assert_close(y[i : i + 1], alone)


def test_make_step_refuses() -> None:
    with pytest.raises(ValueError, match="rk4"):
        make_step(make_surrogate(**TINY), options=SamplingOptions(sampler="rk4"))
