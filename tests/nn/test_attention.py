"""Attention against loops over heads and tokens in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lola_ds.kernels.reference import rope_angles
from lola_ds.nn.attention import (
    SHORT_SEQUENCE,
    MultiheadSelfAttention,
    attend,
    grid_coordinates,
    init_theta,
    local_window,
    window_block_mask,
)


def test_grid_coordinates_are_row_major() -> None:
    expected = [[float(i), float(j)] for i in range(2) for j in range(3)]
    assert grid_coordinates((2, 3)).tolist() == expected
    assert grid_coordinates((3,)).tolist() == [[0.0], [1.0], [2.0]]


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the pairs (2i, 2i + 1) of one token's head by loops."""
    y = torch.empty_like(x)
    for i, angle in enumerate(angles.tolist()):
        c, s = math.cos(angle), math.sin(angle)
        y[2 * i] = c * x[2 * i] - s * x[2 * i + 1]
        y[2 * i + 1] = s * x[2 * i] + c * x[2 * i + 1]
    return y


def naive_attention(
    msa: MultiheadSelfAttention,
    x: Tensor,
    coordinates: Tensor | None = None,
    theta: Tensor | None = None,
    mask: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Attention by loops; x has shape (T, H), the first block's values (heads, T, H/heads)."""
    T, H = x.shape
    d = H // msa.heads
    qkv = (x @ msa.qkv_proj.weight.T).view(T, 3, msa.heads, d)
    y = torch.zeros_like(x)
    for head in range(msa.heads):
        q, k, v = (list(qkv[:, i, head]) for i in range(3))
        if first is not None:
            v = [(1 - msa.value_share) * a + msa.value_share * b for a, b in zip(v, first[head])]
        for i in range(T):
            if msa.qk_norm:
                q[i] = q[i] / (q[i].square().mean() + 1e-5).sqrt()
                k[i] = k[i] / (k[i].square().mean() + 1e-5).sqrt()
            if theta is not None:
                angles = (coordinates[i] @ theta)[head * d // 2 : (head + 1) * d // 2]
                q[i], k[i] = rotated(q[i], angles), rotated(k[i], angles)
        for i in range(T):
            visible = [j for j in range(T) if mask is None or mask[i, j]]
            scores = torch.stack([q[i] @ k[j] / math.sqrt(d) for j in visible])
            for w, j in zip(scores.softmax(0), visible):
                y[i, head * d : (head + 1) * d] += w * v[j]
    return y @ msa.y_proj.weight.T + msa.y_proj.bias


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("window", [None, (1, 3)])
def test_attention_follows_its_formula(qk_norm: bool, rope: bool, window: tuple | None) -> None:
    torch.manual_seed(0)
    shape = (2, 4)
    msa = MultiheadSelfAttention(12, heads=3, qk_norm=qk_norm).double()
    x = torch.randn(2, 8, 12, dtype=torch.float64, requires_grad=True)
    coordinates = grid_coordinates(shape).double()
    theta = init_theta(2, 12).double() if rope else None
    mask = local_window(shape, window, (False, True), torch.device("cpu")) if window else None

    y, _ = msa(x, coordinates, theta, mask)
    expected = torch.stack([naive_attention(msa, tokens, coordinates, theta, mask) for tokens in x])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)

    weights = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_residual_values_follow_their_formula() -> None:
    torch.manual_seed(0)
    msa = MultiheadSelfAttention(12, heads=3, value_residual=True).double()
    with torch.no_grad():
        msa.value_share.fill_(0.3)
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    first = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    y, values = msa(x, first_values=first)
    expected = torch.stack(
        [naive_attention(msa, a, first=b.transpose(0, 1)) for a, b in zip(x, first)]
    )
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(values, msa.qkv_proj(x)[..., 24:].view(2, 4, 3, 4))

    inputs, weights = (first, msa.value_share), torch.randn_like(y)
    grads = torch.autograd.grad((y * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-6, atol=1e-8)


def test_scores_depend_on_relative_positions_only() -> None:
    msa = MultiheadSelfAttention(8, heads=2)
    x, theta = torch.randn(1, 6, 8), init_theta(2, 8)
    coordinates = grid_coordinates((2, 3))
    shifted = coordinates + torch.tensor([5.0, -7.0])
    here, there = (msa(x, p, theta)[0] for p in (coordinates, shifted))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "window", "periodic"),
    [((6,), (3,), (True,)), ((3, 5), (1, 5), (False, True)), ((2, 4, 3), (3, 2, 3), (False,) * 3)],
)
def test_local_windows_wrap_on_periodic_axes(shape: tuple, window: tuple, periodic: tuple) -> None:
    mask = local_window(shape, window, periodic, torch.device("cpu"))
    points = list(itertools.product(*(range(s) for s in shape)))
    for (i, p), (j, q) in itertools.product(enumerate(points), repeat=2):
        visible = True
        for a, b, s, w, wraps in zip(p, q, shape, window, periodic):
            distance = min((a - b) % s, (b - a) % s) if wraps else abs(a - b)
            visible = visible and distance <= w // 2
        assert bool(mask[i, j]) == visible


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("periodic", [(False, True, True), (False, False, True)])
def test_windows_in_blocks_are_the_same_windows(periodic: tuple) -> None:
    """FlexAttention's blocks against the dense mask: which blocks, and what attention gives."""
    from torch.nn.attention.flex_attention import flex_attention

    shape, window = (3, 16, 8), (3, 5, 3)
    mask = local_window(shape, window, periodic, torch.device("cpu"))
    blocks = window_block_mask(shape, window, periodic, torch.device("cpu"))
    seen = mask.view(3, 128, 3, 128).any(dim=3).any(dim=1)
    assert torch.equal(blocks.to_dense()[0, 0].bool(), seen)
    q, k, v = torch.randn(3, 1, 2, 384, 16)
    expected = attend(q, k, v, mask)
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=blocks), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on a GPU alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_on_a_gpu_train_as_on_a_cpu(dtype: torch.dtype) -> None:
    """Blocks and their gradients against the dense mask in float64, with a ragged last block."""
    shape, window, periodic = (3, 10, 8), (3, 5, 3), (False, True, True)
    dense = local_window(shape, window, periodic, torch.device("cpu"))
    blocks = local_window(shape, window, periodic, torch.device("cuda"))
    exact = [torch.randn(2, 2, 240, 64).to(dtype).double().requires_grad_() for _ in range(3)]
    inputs = [x.detach().to("cuda", dtype).requires_grad_() for x in exact]
    weights = torch.randn(2, 2, 240, 64).to(dtype)
    y = attend(*exact, dense)
    expected = [y, *torch.autograd.grad(y, exact, weights.double())]
    y = attend(*inputs, blocks)
    found = [y, *torch.autograd.grad(y, inputs, weights.cuda())]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3  # TF32 products by Triton's default
    for a, b in zip(found, expected, strict=True):
        error = (a.detach().cpu().double() - b.detach()).norm() / b.detach().norm()
        assert error < tolerance


def test_angles_stay_exact_under_autocast() -> None:
    theta, coordinates = init_theta(1, 64), grid_coordinates((512,))
    with torch.autocast("cpu", torch.bfloat16):
        angles = rope_angles(coordinates, theta, 2)
    expected = (coordinates.double() @ theta.double()).unflatten(-1, (2, -1))
    torch.testing.assert_close(angles.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", [7, SHORT_SEQUENCE])
def test_short_attention_is_trained_in_float32(tokens: int) -> None:
    """Under autocast too, which narrows what attention is given: only the ends are rounded."""
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, tokens, 16).bfloat16().double().requires_grad_() for _ in range(3)]
    short = [x.detach().bfloat16().requires_grad_() for x in exact]
    weights = torch.randn(2, 3, tokens, 16).bfloat16()
    y = torch.nn.functional.scaled_dot_product_attention(*exact)
    expected = [y, *torch.autograd.grad((y * weights).sum(), exact)]
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(*short)
    found = [y, *torch.autograd.grad(y, short, weights)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=1e-6)


def test_attention_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match="attention_heads=4"):
        MultiheadSelfAttention(12, heads=4)
