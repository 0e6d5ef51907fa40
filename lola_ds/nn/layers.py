"""Layers for fields with one to four axes: convolutions, normalisation, patches, precision.

Shapes: B batch, C channels, *S the spatial axes, of which there are N (`spatial`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lola_ds.kernels import channel_norm, silu_dropout

__all__ = [
    "ChannelNorm",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Conv4d",
    "FeedForward",
    "Float32Linear",
    "Patchify",
    "Unpatchify",
    "Upsample",
    "check_levels",
    "convolution",
    "disable_autocast",
    "is_channels_last",
    "make_norm",
    "matmul_dtype",
    "pad_circular",
    "patchify",
    "per_axis",
    "periodic_axes",
    "prefers_channels_last",
    "to_channels_last",
    "unpatchify",
]

P = ParamSpec("P")
R = TypeVar("R")


def disable_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a method that runs in the dtype of its arguments, autocast or not.

    The method's first tensor argument tells which device's autocast to disable.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor = next(arg for arg in args if torch.is_tensor(arg))
        with torch.autocast(tensor.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapper


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which matrix products of `x` run: autocast's, or that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Float32Linear(nn.Linear):
    """A linear layer that stays in float32 under autocast."""

    @disable_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Maps features linearly.

        Arguments:
            x: Features, with shape (*, C_in).

        Returns:
            Features in float32, with shape (*, C_out).
        """
        return super().forward(x.to(self.weight.dtype))


class FeedForward(nn.Sequential):
    """Two layers with SiLU and dropout between.

    Arguments:
        first: The first layer.
        last: The second layer.
        dropout: The dropout rate, or None.
    """

    def __init__(self, first: nn.Module, last: nn.Module, dropout: float | None = None) -> None:
        super().__init__(first, nn.SiLU(), nn.Dropout(dropout or 0.0), last)

    def forward(self, x: Tensor) -> Tensor:
        """Computes last(dropout(silu(first(x)))) for fields or tokens `x`."""
        first, _, dropout, last = self
        assert isinstance(dropout, nn.Dropout)
        return last(silu_dropout(first(x), dropout.p, self.training))


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """Expands one number to all axes, or checks that there is one for each axis.

    Arguments:
        value: The number or numbers.
        axes: The number of axes.
        name: The name of the option, for messages.

    Returns:
        One number for each axis.

    Raises:
        ValueError: The number of values is not the number of axes.
    """
    values = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != axes:
        raise ValueError(f"{name}={list(values)} should have one value for each of {axes} axes")
    return values


def periodic_axes(periodic: bool | Sequence[bool], axes: int) -> tuple[bool, ...]:
    """Expands the `periodic` option to one flag for each of the `axes` axes."""
    flags = (periodic,) * axes if isinstance(periodic, bool) else tuple(bool(p) for p in periodic)
    if len(flags) != axes:
        raise ValueError(f"periodic={list(flags)} should have one flag for each of {axes} axes")
    return flags


def prefers_channels_last(x: Tensor) -> bool:
    """Returns whether convolutions of fields (B, C, *S) are fastest with channels last.

    Those with two axes do. With three, torch's 1×1×1 convolutions on a CPU do not take them.
    """
    return x.ndim == 4


def to_channels_last(x: Tensor) -> Tensor:
    """Stores fields (B, C, *S) channels-last if that is fastest."""
    return x.contiguous(memory_format=torch.channels_last) if prefers_channels_last(x) else x


def is_channels_last(x: Tensor) -> bool:
    """Returns whether fields (B, C, *S) have two axes and are stored channels-last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def patchify(x: Tensor, patch: Sequence[int], last: bool | None = None) -> Tensor:
    """Moves patches to channels, the field's own channels outermost.

    Arguments:
        x: Fields, with shape (B, C, *S).
        patch: The patch's size along each axis.
        last: Whether the result is stored channels-last; by default where that is fastest.

    Returns:
        Fields, with shape (B, C·prod(patch), *S/patch).

    Raises:
        ValueError: An axis is not a multiple of the patch.
    """
    if all(p == 1 for p in patch):
        return x
    B, C, *S = x.shape
    if len(S) != len(patch) or any(s % p for s, p in zip(S, patch)):
        raise ValueError(f"a grid of {tuple(S)} points does not split in patches of {tuple(patch)}")
    N, last = len(S), prefers_channels_last(x) if last is None else last
    split = [n for s, p in zip(S, patch) for n in (s // p, p)]
    x = x.reshape(B, C, *split)
    points, offsets = range(2, 2 + 2 * N, 2), range(3, 3 + 2 * N, 2)
    grid = [s // p for s, p in zip(S, patch)]
    if last:
        return x.permute(0, *points, 1, *offsets).reshape(B, *grid, -1).movedim(-1, 1)
    return x.permute(0, 1, *offsets, *points).reshape(B, -1, *grid)


def unpatchify(x: Tensor, patch: Sequence[int], last: bool | None = None) -> Tensor:
    """Moves channels to patches; undoes `patchify`.

    Arguments:
        x: Fields, with shape (B, C·prod(patch), *S).
        patch: The patch's size along each axis.
        last: Whether the result is stored channels-last; by default where that is fastest.

    Returns:
        Fields, with shape (B, C, *S·patch).
    """
    if all(p == 1 for p in patch):
        return x
    B, _, *S = x.shape
    N, last = len(S), prefers_channels_last(x) if last is None else last
    x = x.reshape(B, -1, *patch, *S)
    points = [axis for i in range(N) for axis in (2 + N + i, 2 + i)]
    grid = [s * p for s, p in zip(S, patch)]
    if last:
        return x.permute(0, *points, 1).reshape(B, *grid, -1).movedim(-1, 1)
    return x.permute(0, 1, *points).reshape(B, -1, *grid)


class Patchify(nn.Module):
    """Space to depth; see `patchify`."""

    def __init__(self, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)

    def forward(self, x: Tensor) -> Tensor:
        """Maps fields (B, C, *S) to (B, C·prod(patch), *S/patch)."""
        return patchify(x, self.patch)


class Unpatchify(Patchify):
    """Depth to space; see `unpatchify`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps fields (B, C·prod(patch), *S) to (B, C, *S·patch)."""
        return unpatchify(x, self.patch)


class Upsample(nn.Module):
    """Nearest upsampling, for any number of axes.

    Arguments:
        factor: The number of copies along each axis.
    """

    def __init__(self, factor: Sequence[int]) -> None:
        super().__init__()
        self.factor = tuple(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Maps fields (B, C, *S) to (B, C, *S·factor)."""
        last = prefers_channels_last(x)
        x = x.movedim(1, -1) if last else x
        grid = slice(1, -1) if last else slice(2, None)
        before, S, after = x.shape[: grid.start], x.shape[grid], x.shape[x.ndim - last :]
        y = x.reshape(*before, *(n for s in S for n in (s, 1)), *after)
        y = y.expand(*before, *(n for s, f in zip(S, self.factor) for n in (s, f)), *after)
        y = y.reshape(*before, *(s * f for s, f in zip(S, self.factor)), *after)
        return y.movedim(-1, 1) if last else y


class _CircularPad(torch.autograd.Function):
    """Wraps halos around a field in one buffer; backward folds the halos' gradients back.

    Chains of `torch.cat` do the same and take a third of a training step on a CPU: each slice's
    backward is a full field of zeros, in another memory format. A compiler, to which writing slices
    in place is a pass over the field for each, gets expressions for every point instead, which it
    fuses with what comes before and after.
    """

    @staticmethod
    def forward(ctx, x: Tensor, pad: tuple[int, ...]) -> Tensor:
        ctx.pad = pad
        last = is_channels_last(x)
        if torch.compiler.is_compiling():
            order = torch.channels_last if last else torch.contiguous_format
            for axis, p in enumerate(pad, start=2):
                if p:
                    n = x.shape[axis]
                    x = x.index_select(axis, torch.arange(-p, n + p, device=x.device) % n)
            return x.contiguous(memory_format=order)
        B, C, *points = x.shape
        points = [s + 2 * p for s, p in zip(points, pad)]
        y = x.new_empty(B, *points, C).movedim(-1, 1) if last else x.new_empty(B, C, *points)
        _interior(y, pad).copy_(x)
        for axis, p in enumerate(pad, start=2):
            if p:
                n = x.shape[axis]
                y.narrow(axis, 0, p).copy_(y.narrow(axis, n, p))
                y.narrow(axis, n + p, p).copy_(y.narrow(axis, p, p))
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        if torch.compiler.is_compiling():
            for axis, p in reversed(list(enumerate(ctx.pad, start=2))):
                if p:
                    n = grad.shape[axis] - 2 * p
                    behind = (0, 0) * (grad.ndim - 1 - axis)
                    first = F.pad(grad.narrow(axis, n + p, p), (*behind, 0, n - p))
                    last = F.pad(grad.narrow(axis, 0, p), (*behind, n - p, 0))
                    grad = grad.narrow(axis, p, n) + first + last
            return grad, None
        grad = grad.clone()
        for axis, p in reversed(list(enumerate(ctx.pad, start=2))):
            if p:
                n = grad.shape[axis] - 2 * p
                grad.narrow(axis, n, p).add_(grad.narrow(axis, 0, p))
                grad.narrow(axis, p, p).add_(grad.narrow(axis, n + p, p))
        return _interior(grad, ctx.pad), None


def _interior(x: Tensor, pad: Sequence[int]) -> Tensor:
    for axis, p in enumerate(pad, start=2):
        x = x.narrow(axis, p, x.shape[axis] - 2 * p)
    return x


def pad_circular(x: Tensor, pad: Sequence[int]) -> Tensor:
    """Pads both sides of spatial axes with wrapped points; keeps the memory format.

    Arguments:
        x: Fields, with shape (B, C, *S).
        pad: The number of points on each side of each axis.

    Returns:
        Fields, with shape (B, C, *(S + 2 pad)).

    Raises:
        ValueError: An axis is shorter than its halo.
    """
    if any(s < p for s, p in zip(x.shape[2:], pad)):
        raise ValueError(f"a grid of {tuple(x.shape[2:])} points is too small to wrap {tuple(pad)}")
    return _CircularPad.apply(x, tuple(pad)) if any(pad) else x


class _ChannelsLast(torch.autograd.Function):
    """Weights cast and laid out as a convolution reads them, in one pass.

    Their gradient comes back as the weights are stored, or it would be copied once more where it is
    accumulated.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return weight.to(dtype, memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype, memory_format=torch.contiguous_format), None


class _Convolution:
    """Mixes per-axis padding (circular where periodic, zeros elsewhere) in torch's convolutions."""

    circular_padding: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, *S) to (B, C_out, *S/stride)."""
        x = pad_circular(x.to(matmul_dtype(x)), self.circular_padding)
        weight = self.weight
        if is_channels_last(x) and weight.dtype != x.dtype:
            weight = _ChannelsLast.apply(weight, x.dtype)
        return self._conv_forward(x, weight, self.bias)


class Conv1d(_Convolution, nn.Conv1d):
    """Convolution along one axis."""


class Conv2d(_Convolution, nn.Conv2d):
    """Convolution along two axes."""


class Conv3d(_Convolution, nn.Conv3d):
    """Convolution along three axes."""


class Conv4d(nn.Module):
    """Convolution along four axes, time first, factored in space then time.

    The three axes of space are convolved frame by frame, then each point's frames, where the kernel
    or the stride along time is not 1.

    Arguments:
        space: The convolution over the last three axes.
        time: The convolution over the first axis, or None.
    """

    def __init__(self, space: nn.Module, time: nn.Module | None) -> None:
        super().__init__()
        self.space = space
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        """Maps fields (B, C_in, L, *S) to (B, C_out, L/stride, *S/stride)."""
        B = len(x)
        x = self.space(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, -1))
        if self.time is None:
            return x.transpose(1, 2)
        S = x.shape[3:]
        x = self.time(x.flatten(3).permute(0, 3, 2, 1).flatten(0, 1))
        return x.unflatten(0, (B, -1)).permute(0, 2, 3, 1).unflatten(3, S)


Convolution = Conv1d | Conv2d | Conv3d | Conv4d


def convolution(
    in_channels: int,
    out_channels: int,
    spatial: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    periodic: bool | Sequence[bool] = False,
    identity_init: bool = False,
    gain: float = 1.0,
) -> Convolution:
    """Makes a "same" convolution, padded circularly on periodic axes and with zeros on others.

    Arguments:
        in_channels: The number C_in of input channels.
        out_channels: The number C_out of output channels.
        spatial: The number N of axes, 1 to 4.
        kernel_size: The kernel's odd size, for all axes or each.
        stride: The stride, for all axes or each.
        periodic: Whether axes are periodic, for all or each.
        identity_init: Whether to start near the identity: 1e-2 times the default weight, plus one
            at the kernel's centre from input channel o mod C_in to output channel o.
        gain: A factor of the initial weight.

    Returns:
        The convolution.

    Raises:
        ValueError: There is no such convolution or a kernel size is even.
    """
    if spatial not in (1, 2, 3, 4):
        raise ValueError(f"spatial={spatial}: convolutions have 1 to 4 axes")
    kernel = per_axis(kernel_size, spatial, "kernel_size")
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"kernel_size={list(kernel)} should be odd on every axis")
    strides, wraps = per_axis(stride, spatial, "stride"), periodic_axes(periodic, spatial)
    if spatial == 4:
        (k, *ks), (s, *ss), (w, *ws) = kernel, strides, wraps
        time = None
        if k > 1 or s > 1:
            time = convolution(out_channels, out_channels, 1, k, s, w, identity_init, gain)
            gain = 1.0
        space = convolution(in_channels, out_channels, 3, ks, ss, ws, identity_init, gain)
        return Conv4d(space, time)
    conv = {1: Conv1d, 2: Conv2d, 3: Conv3d}[spatial](
        in_channels,
        out_channels,
        kernel,
        stride=strides,
        padding=tuple(0 if w else k // 2 for w, k in zip(wraps, kernel)),
    )
    conv.circular_padding = tuple(k // 2 if w else 0 for w, k in zip(wraps, kernel))
    with torch.no_grad():
        conv.weight.mul_(gain)
    if identity_init:
        _init_identity(conv)
    return conv


@torch.no_grad()
def _init_identity(conv: Conv1d | Conv2d | Conv3d) -> None:
    conv.weight.mul_(1e-2)
    o = torch.arange(conv.out_channels)
    conv.weight[(o, o % conv.in_channels, *(k // 2 for k in conv.kernel_size))] += 1


class ChannelNorm(nn.Module):
    r"""Layer normalisation over channels, without affine parameters, computed in float32.

    .. math:: y = \frac{x - \mathbb{E}_c[x]}{\sqrt{\mathbb{V}_c[x] + \epsilon}}

    The variance is the unbiased one, over C - 1, as in the published weights; their state
    dictionaries hold the small number as a buffer too.

    Arguments:
        eps: The number :math:`\epsilon`.
    """

    eps: Tensor

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.register_buffer("eps", torch.tensor(eps))
        self.epsilon = eps

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "eps" in state_dict:
            self.epsilon = float(state_dict[prefix + "eps"])

    @disable_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Normalises fields (B, C, *S) over C."""
        return channel_norm(x, self.epsilon)


def make_norm(name: str, channels: int) -> nn.Module:
    """Makes a normalisation without affine parameters.

    Arguments:
        name: `layer` (over channels) or `group`.
        channels: The number C of channels.

    Returns:
        The normalisation.

    Raises:
        ValueError: The name is unknown.
    """
    if name == "layer":
        return ChannelNorm()
    if name == "group":
        return nn.GroupNorm(min(16, channels), channels, affine=False)
    raise ValueError(f"norm='{name}' is unknown; known: layer, group")


def check_levels(
    hid_channels: Sequence[int], hid_blocks: Sequence[int], attention_heads: Mapping[int, int]
) -> dict[int, int]:
    """Checks the levels of a convolutional network.

    Arguments:
        hid_channels: The number of channels at each level.
        hid_blocks: The number of residual blocks at each level.
        attention_heads: The number of heads at the levels with attention.

    Returns:
        The number of heads by level, as integers.

    Raises:
        ValueError: The lists differ in length or a level does not exist.
    """
    if len(hid_channels) != len(hid_blocks):
        raise ValueError(
            f"hid_channels={list(hid_channels)} and hid_blocks={list(hid_blocks)} should have "
            "the same number of levels"
        )
    heads = {int(level): int(n) for level, n in attention_heads.items()}
    if any(not 0 <= level < len(hid_blocks) for level in heads):
        raise ValueError(
            f"attention_heads={heads} names a level that is not in 0..{len(hid_blocks) - 1}"
        )
    return heads
