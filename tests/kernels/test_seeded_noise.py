"""Noise of a sample depends on the sample's seed alone."""

import torch

from lola_ds.kernels import seeded_normal

CPU = torch.device("cpu")
SEEDS = torch.tensor([7, 2**62 - 1, 0])


def test_noise_depends_on_the_seed_only() -> None:
    batch = seeded_normal(SEEDS, torch.Size((4, 5)), CPU)
    assert batch.shape == (3, 4, 5)
    for x, seed in zip(batch, SEEDS):
        assert torch.equal(seeded_normal(seed[None], torch.Size((4, 5)), CPU)[0], x)


def test_noise_is_standard_normal() -> None:
    x = seeded_normal(SEEDS, torch.Size((20_000,)), CPU)
    assert x.mean(dim=1).abs().max() < 0.03
    assert (x.std(dim=1) - 1).abs().max() < 0.03
    assert abs((x[0] * x[1]).mean()) < 0.03
