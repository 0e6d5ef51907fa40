"""Losses by noise level and lead time: sums that average over parts of a batch."""

from __future__ import annotations

import pytest
import torch

from lola_ds.binned_losses import bin_means, by_lead, by_noise


def test_by_noise_bins_decades_and_keeps_the_ends() -> None:
    sigma = torch.tensor([1e-5, 2e-3, 0.5, 2.0, 3.0, 1e5])
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0, 7.0])
    sums = by_noise(loss, torch.ones(6), torch.ones(6), sigma)
    means = bin_means("by_noise", sums.flatten().tolist())
    expected = {"1e-3": 1.5, "1e-1": 3.0, "1e+0": 5.0, "1e+2": 7.0}
    assert means == pytest.approx({f"by_noise/{key}": value for key, value in expected.items()})


def test_by_lead_measures_from_the_nearest_known_frame() -> None:
    """Frames 0 and 1 known, then the last one only; padding counts for nothing."""
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
    loss = torch.tensor([[9.0, 9, 1, 2], [30, 20, 10, 9], [9, 99, 99, 99]])
    sums = by_lead(loss, torch.tensor([1.0, 2.0, 0.0]), mask)
    means = bin_means("by_lead", sums.flatten().tolist())
    expected = {"1": (1 + 2 * 10) / 3, "2": (2 + 2 * 20) / 3, "3": 30.0}
    assert means == pytest.approx({f"by_lead/{key}": value for key, value in expected.items()})


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    loss, weight, mask = torch.rand(6, 5), torch.rand(6), torch.rand(6, 5) < 0.4
    parts = [by_lead(loss[i : i + 2], weight[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, by_lead(loss, weight, mask))


def test_no_loss_of_padding_reaches_a_bin() -> None:
    loss, weight = torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 2.0])
    sums = by_noise(loss, weight, torch.ones(2), torch.ones(2))
    assert bin_means("by_noise", sums.flatten().tolist()) == {"by_noise/1e+0": 1.0}
