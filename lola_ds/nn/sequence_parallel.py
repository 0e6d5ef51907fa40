r"""Sequence parallelism: the tokens of one sample over several ranks (DeepSpeed-Ulysses).

The n ranks of a group hold the same samples. Each holds T / n consecutive tokens of them, in all
layers but attention, where an all-to-all turns T / n tokens of every head into all T tokens of
h / n heads, and another one turns the result back:

    tokens (B, T, ·) --split--> (B, T/n, ·) ... --gather--> (B, T, ·)
                     queries, keys, values (B, T/n, h, d) --to_heads--> (B, T, h/n, d)
                     attended (B, T, h/n, d)            --to_tokens--> (B, T/n, h, d)

Activations, and the work of every layer, are divided by n; a rank sends 4 tensors of T / n tokens a
block and pass, whatever n.

Gradients: outside, between `gather` and `split`, every rank of the group computes the same
gradients. Inside, a rank's gradients are n times those of its own part, so that their mean
over the group is that of the whole. Parameters inside and outside are thus averaged over all ranks
alike, as if each rank had samples of its own: ZeRO, clipping and checkpoints know nothing of it.

References:
    | DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long Sequence
    | Transformer Models (Jacobs et al., 2023)
    | https://arxiv.org/abs/2309.14509
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SequenceGroup", "new_sequence_group", "parallelize_sequence"]


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks among which the tokens of a sample are divided; by default one, which has all.

    Arguments:
        size: The number n of ranks.
        rank: The rank of this process in the group.
        name: Torch's name of the process group. Collectives on tensors without storage need the
            name only.
    """

    size: int = 1
    rank: int = 0
    name: str = ""

    def split(self, x: Tensor) -> Tensor:
        """Splits tokens (B, T, ...) and returns those of this rank, (B, T/n, ...).

        Raises:
            ValueError: The number n does not divide T.
        """
        if self.size == 1:
            return x
        self.check_tokens(x.shape[1])
        return _Split.apply(x, self)

    def check_tokens(self, tokens: int) -> None:
        """Refuses a number of tokens that n does not divide.

        Raises:
            ValueError: The number n does not divide T.
        """
        if tokens % self.size:
            raise ValueError(
                f"sequence_parallel={self.size} does not divide the {tokens} tokens of a sample, "
                "which are the patches of its grid; choose a divisor, or another patch_size"
            )

    def gather(self, x: Tensor) -> Tensor:
        """Gathers tokens (B, T/n, ...) of all ranks, (B, T, ...)."""
        return x if self.size == 1 else _Gather.apply(x, self)

    def to_heads(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Exchanges tokens of all heads, (B, T/n, h, d), for all tokens of some, (B, T, h/n, d)."""
        if self.size == 1:
            return tensors
        x = torch.stack(tensors).unflatten(3, (self.size, -1))
        y = _AllToAll.apply(x.movedim(3, 0), self)  # (n, 3, B, T/n, h/n, d)
        return y.movedim(0, 2).flatten(2, 3).unbind(0)

    def to_tokens(self, x: Tensor) -> Tensor:
        """Exchanges all tokens of some heads, (B, T, h/n, d), for tokens of all, (B, T/n, h, d)."""
        if self.size == 1:
            return x
        y = _AllToAll.apply(x.unflatten(1, (self.size, -1)).movedim(1, 0), self)
        return y.movedim(0, 2).flatten(2, 3)


def parallelize_sequence(network: nn.Module, group: SequenceGroup) -> None:
    """Makes the transformers within a network work on the tokens of their rank.

    Raises:
        ValueError: It has no transformer, or n does not divide the heads of one.
    """
    found = [module for module in network.modules() if hasattr(module, "sequence")]
    if not found and group.size > 1:
        raise ValueError(
            f"sequence_parallel={group.size} divides the tokens of transformers, and this network "
            "is none; choose arch=vit, or sequence_parallel=1 with checkpointing=full"
        )
    for module in found:
        heads = getattr(module, "heads", group.size)
        if heads % group.size:
            raise ValueError(
                f"sequence_parallel={group.size} does not divide attention_heads={heads}; "
                "choose a divisor"
            )
        module.sequence = group  # pyright: ignore[reportArgumentType]


def _all_gather(x: Tensor, group: SequenceGroup) -> Tensor:
    """The tokens of all ranks in order: (B, T/n, ...) to (B, T, ...)."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(
        x.contiguous(), group.size, group.name
    )
    parts = torch.ops._c10d_functional.wait_tensor(gathered).unflatten(0, (group.size, -1))
    return parts.movedim(0, 1).flatten(1, 2)


def _local_tokens(x: Tensor, group: SequenceGroup) -> Tensor:
    return x.chunk(group.size, dim=1)[group.rank]


class _Split(torch.autograd.Function):
    """Inside from outside: a part of the tokens; its gradients come n times too large."""

    @staticmethod
    def forward(ctx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _local_tokens(x, group).contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grad, ctx.group) / ctx.group.size, None


class _Gather(torch.autograd.Function):
    """Outside from inside: all tokens; their gradients go in n times too large."""

    @staticmethod
    def forward(ctx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _local_tokens(grad, ctx.group) * ctx.group.size, None


class _AllToAll(torch.autograd.Function):
    """All-to-all of (n, ...): entry i goes to rank i, and becomes entry `rank` there."""

    @staticmethod
    def forward(ctx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grad, ctx.group), None


def _all_to_all(x: Tensor, group: SequenceGroup) -> Tensor:
    ones = [1] * group.size
    y = torch.ops._c10d_functional.all_to_all_single(x.contiguous(), ones, ones, group.name)
    return torch.ops._c10d_functional.wait_tensor(y)


def new_sequence_group(size: int) -> SequenceGroup:
    """Makes groups of `size` neighbouring ranks of a node; a collective call.

    Arguments:
        size: The number n of ranks of a group, which divides that of all ranks.

    Returns:
        The group of this rank.
    """
    if size == 1:
        return SequenceGroup()
    group, _ = dist.new_subgroups(size)
    assert isinstance(group, dist.ProcessGroup)
    return SequenceGroup(size, dist.get_rank() % size, group.group_name)
