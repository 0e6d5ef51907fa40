"""Layers against loops in float64: patches, padding, convolutions, normalisation."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lola_ds.nn.layers import (
    ChannelNorm,
    Upsample,
    convolution,
    make_norm,
    pad_circular,
    patchify,
    per_axis,
    periodic_axes,
    unpatchify,
)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((6,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3)), ((4, 2, 4, 2), (2, 2, 2, 1))],
)
@pytest.mark.parametrize("last", [True, False])
def test_patches_are_ordered_channel_outermost(shape: tuple, patch: tuple, last: bool) -> None:
    x = torch.randn(2, 3, *shape)
    y = patchify(x, patch, last)
    offsets = list(itertools.product(*(range(p) for p in patch)))
    for c, (k, offset) in itertools.product(range(3), enumerate(offsets)):
        slices = tuple(slice(o, None, p) for o, p in zip(offset, patch))
        assert torch.equal(y[:, c * len(offsets) + k], x[(slice(None), c, *slices)])
    back = unpatchify(y, patch, last)
    assert torch.equal(back, x)
    for fields in (y, back):
        assert fields.movedim(1, -1).is_contiguous() is last


def test_patchify_refuses_other_grids() -> None:
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        patchify(torch.zeros(1, 1, 5, 4), (2, 2))


def naive_convolution(conv: torch.nn.Module, x: Tensor, periodic: tuple[bool, ...]) -> Tensor:
    """A "same" convolution by loops over the kernel, in float64, for stride 1."""
    weight, bias = conv.weight.double(), conv.bias.double()
    x = x.double()
    y = bias.view(1, -1, *[1] * len(periodic)).expand(len(x), -1, *x.shape[2:]).clone()
    for offset in itertools.product(*(range(k) for k in weight.shape[2:])):
        shifted = x
        for axis, o in enumerate(offset):
            size = x.shape[2 + axis]
            index = torch.arange(size) + o - weight.shape[2 + axis] // 2
            inside = (index >= 0) & (index < size)
            shifted = shifted.index_select(2 + axis, index % size)
            if not periodic[axis]:
                shape = [1] * x.ndim
                shape[2 + axis] = -1
                shifted = shifted * inside.view(shape)
        y += torch.einsum("oi,bi...->bo...", weight[(..., *offset)], shifted)
    return y


@pytest.mark.parametrize(
    ("shape", "kernel", "periodic"),
    [
        ((7,), 3, True),
        ((5, 6), 3, False),
        ((5, 6), 3, True),
        ((5, 6), (5, 3), (True, False)),
        ((3, 4, 5), 3, (False, True, True)),
        ((4, 4), 1, True),
    ],
)
def test_convolution_pads_each_axis_by_its_nature(
    shape: tuple, kernel: int | tuple, periodic: bool | tuple
) -> None:
    conv = convolution(2, 3, len(shape), kernel, periodic=periodic)
    x = torch.randn(2, 2, *shape)
    expected = naive_convolution(conv, x, periodic_axes(periodic, len(shape)))
    torch.testing.assert_close(conv(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), ((1, 3, 3, 1), 1), (3, (2, 1, 2, 1))])
def test_four_axes_are_convolved_in_space_then_time(
    kernel: int | tuple, stride: int | tuple
) -> None:
    periodic = (False, True, False, True)
    conv = convolution(2, 3, 4, kernel, stride=stride, periodic=periodic)
    assert (conv.time is None) == (kernel != 3)
    x = torch.randn(2, 2, 4, 2, 3, 4)
    s = per_axis(stride, 4, "stride")
    frames = [naive_convolution(conv.space, frame, periodic[1:]) for frame in x.unbind(2)]
    y = torch.stack(frames, dim=2)[..., :: s[1], :: s[2], :: s[3]]
    if conv.time is not None:
        points = y.flatten(3).unbind(3)
        points = [naive_convolution(conv.time, p, periodic[:1])[..., :: s[0]] for p in points]
        y = torch.stack(points, dim=3).unflatten(3, y.shape[3:])
    torch.testing.assert_close(conv(x).double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3), (2, 1, 2, 2)])
def test_upsampling_repeats_points(shape: tuple) -> None:
    factor = (2, 1, 3, 2)[: len(shape)]
    x = torch.randn(1, 2, *shape)
    y = Upsample(factor)(x)
    for point in itertools.product(*(range(n * f) for n, f in zip(shape, factor))):
        coarse = tuple(i // f for i, f in zip(point, factor))
        assert torch.equal(y[(..., *point)], x[(..., *coarse)])


def test_periodic_convolution_commutes_with_rolls() -> None:
    conv = convolution(2, 3, 2, periodic=(True, False))
    x = torch.randn(2, 2, 6, 7)
    torch.testing.assert_close(conv(x.roll(2, dims=2)), conv(x).roll(2, dims=2))
    assert not torch.allclose(conv(x.roll(2, dims=3)), conv(x).roll(2, dims=3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_circular_padding_and_its_gradient(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    x.requires_grad_()
    y = pad_circular(x, (2, 1))
    assert torch.equal(y, F.pad(x, (1, 1, 2, 2), mode="circular"))
    assert y.is_contiguous(memory_format=layout)
    assert torch.autograd.gradcheck(lambda x: pad_circular(x, (2, 1)), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_padding_is_the_same(layout: torch.memory_format) -> None:
    compiled = torch.compile(pad_circular, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    x.requires_grad_()
    grad = torch.randn(2, 3, 8, 7, dtype=torch.float64)
    results = []
    for function in (pad_circular, compiled):
        y = function(x, (2, 1))
        assert y.is_contiguous(memory_format=layout)
        results.append((y, *torch.autograd.grad(y, x, grad)))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain)


def test_narrowed_weights_and_their_gradients_keep_their_values() -> None:
    """Channels-last under autocast against contiguous fields, for which nothing is laid out."""
    conv = convolution(16, 8, 2, periodic=True)
    x = torch.randn(2, 16, 6, 7)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        y.float().square().sum().backward()
        assert conv.weight.grad.is_contiguous()
        results.append((y.detach(), conv.weight.grad, conv.bias.grad))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=2e-2, atol=2e-2 * float(plain.abs().max()))


def test_circular_padding_refuses_small_grids() -> None:
    with pytest.raises(ValueError, match="too small"):
        pad_circular(torch.zeros(1, 1, 1, 4), (2, 1))


@pytest.mark.parametrize("spatial", [1, 2, 3, 4])
def test_identity_init_links_channels_cyclically(spatial: int) -> None:
    torch.manual_seed(0)
    conv = convolution(3, 5, spatial, identity_init=True)
    x = torch.randn(1, 3, *[6] * spatial)
    with torch.no_grad():
        for name, p in conv.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    error = conv(x) - x[:, [0, 1, 2, 0, 1]]
    assert 0 < error.abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial": 5}, "spatial=5"),
        ({"spatial": 2, "kernel_size": 2}, "odd"),
        ({"spatial": 2, "kernel_size": [3]}, "kernel_size"),
        ({"spatial": 2, "periodic": [True]}, "periodic"),
    ],
)
def test_convolution_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convolution(1, 1, **options)


@pytest.mark.parametrize("spatial", [1, 2, 3, 4])
def test_gain_scales_the_initial_weight(spatial: int) -> None:
    x = torch.randn(1, 2, *[3] * spatial)
    outputs = []
    for gain in (1.0, 0.0):
        torch.manual_seed(0)
        conv = convolution(2, 2, spatial, gain=gain)
        outputs.append(conv(x))
    assert outputs[0].std() > 0.1
    assert outputs[1].std(dim=[*range(2, 2 + spatial)]).max() < 1e-6


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 5, 4, 3), (2, 3, 2, 2, 2)])
def test_channel_norm_follows_its_formula(shape: tuple) -> None:
    x = 10 * torch.randn(shape, dtype=torch.float64) + 3
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ChannelNorm()(x), expected)


def test_channel_norm_takes_its_epsilon_from_weights() -> None:
    norm = ChannelNorm()
    norm.load_state_dict({"eps": torch.tensor(10.0)})
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 10).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_norms() -> None:
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(make_norm("group", 32)(x), F.group_norm(x, 16))
    with pytest.raises(ValueError, match="batch"):
        make_norm("batch", 8)


def test_per_axis() -> None:
    assert per_axis(2, 3, "stride") == (2, 2, 2)
    assert per_axis([1, 2], 2, "stride") == (1, 2)
