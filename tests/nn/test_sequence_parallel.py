"""Tokens divided among ranks: outputs and gradients of transformers equal those on one rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from lola_ds.nn.dcae import DCEncoder
from lola_ds.nn.sequence_parallel import SequenceGroup, parallelize_sequence
from lola_ds.nn.vit import ViT

WORKER = str(Path(__file__).with_name("sequence_worker.py"))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("world_size", "sizes"), [(2, "2"), pytest.param(4, "2 4", marks=pytest.mark.slow)]
)
def test_divided_equals_whole(world_size: int, sizes: str) -> None:
    """Outputs, gradients of inputs, mean gradients of weights, for every option of the network."""
    run_ranks([WORKER, *sizes.split()], world_size)


def test_what_does_not_divide_is_refused() -> None:
    network = ViT(3, 2, hid_channels=24, hid_blocks=1, attention_heads=3)
    with pytest.raises(ValueError, match="sequence_parallel=2 does not divide attention_heads=3"):
        parallelize_sequence(network, SequenceGroup(2))
    parallelize_sequence(network, SequenceGroup(3))
    with pytest.raises(ValueError, match="does not divide the 16 tokens"):
        network(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="is none; choose arch=vit"):
        parallelize_sequence(DCEncoder(3, 2, [4], [1]), SequenceGroup(2))
