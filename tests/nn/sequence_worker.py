"""One rank: transformers whose tokens are divided, beside the same ones whole. usage: SIZE …"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from helpers import randomize
from torch import Tensor

from lola_ds.nn.sequence_parallel import SequenceGroup, new_sequence_group, parallelize_sequence
from lola_ds.nn.vit import ViT

SHAPE = (2, 3, 4, 8)
CASES: dict[str, dict[str, Any]] = {
    "plain": {"patch_size": [1, 2]},
    "window": {"window_size": 3, "periodic": [True, False]},
    "values": {"value_residual": True, "qk_norm": False, "rope": False},
    "full": {"checkpointing": "full"},
    "selective": {"checkpointing": "selective", "patch_size": 2, "unpatch_size": 1},
}


def run(network: ViT, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The output, the gradients of this rank's inputs, and the mean gradients of the weights."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    y = network(*inputs)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), (*inputs, *network.parameters()))
    for grad in grads[len(inputs) :]:
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return y.detach(), *grads


def compare(options: dict[str, Any], group: SequenceGroup) -> None:
    network = ViT(3, 2, 1, 6, hid_channels=16, hid_blocks=2, attention_heads=4, **options)
    randomize(network)
    torch.manual_seed(dist.get_rank() // group.size)  # neighbours have the same sample
    inputs = torch.randn(SHAPE), torch.randn(2, 6), torch.randn(2, 1, 4, 8)
    expected = run(network, inputs)
    parallelize_sequence(network, group)
    found = run(network, inputs)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[3:], expected[3:], rtol=1e-4, atol=1e-5)
    mod_grad = found[2].clone()  # of replicated values used inside: the mean over the group counts
    dist.all_reduce(mod_grad)
    total = expected[2].clone()
    dist.all_reduce(total)
    torch.testing.assert_close(mod_grad, total, rtol=1e-4, atol=1e-5)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for size in map(int, sys.argv[1:]):
        group = new_sequence_group(size)
        assert group.rank == dist.get_rank() % size
        for options in CASES.values():
            compare(options, group)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
