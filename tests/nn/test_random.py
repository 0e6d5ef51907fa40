"""Seeded noise: a sample's own, whatever the batch."""

import torch

from lola_ds.nn.random import draw_normal

SEEDS = torch.tensor([7, 2**62 - 1, 0])


def test_noise_depends_on_the_seed_only() -> None:
    together = draw_normal((4, 5), SEEDS)
    assert together.shape == (3, 4, 5)
    for x, seed in zip(together, SEEDS):
        assert torch.equal(draw_normal((4, 5), seed[None])[0], x)


def test_noise_is_standard_normal() -> None:
    x = draw_normal((20_000,), SEEDS)
    assert x.mean(dim=1).abs().max() < 0.03
    assert (x.std(dim=1) - 1).abs().max() < 0.03
    assert abs((x[0] * x[1]).mean()) < 0.03
