"""Seeded noise: a sample's own, whatever the batch."""

import torch

from lola_ds.nn.random import draw_normal, make_generators


def test_noise_depends_on_the_seed_only() -> None:
    seeds = torch.tensor([7, 2**62 - 1, 0])
    together = draw_normal((4, 5), make_generators(seeds))
    for x, seed in zip(together, seeds):
        assert torch.equal(draw_normal((4, 5), make_generators(seed[None]))[0], x)


def test_noise_is_standard_normal() -> None:
    x = draw_normal((20_000,), make_generators([0, 1]))
    assert x.mean(dim=1).abs().max() < 0.03
    assert (x.std(dim=1) - 1).abs().max() < 0.03
    assert abs((x[0] * x[1]).mean()) < 0.03


def test_generators_advance() -> None:
    generators = make_generators([0])
    assert not torch.equal(draw_normal((4,), generators), draw_normal((4,), generators))
