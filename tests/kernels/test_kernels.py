"""Every kernel against its reference in float64: values and gradients.

On a GPU where there is one, else in Triton's interpreter (`tests/conftest.py`). Outputs are
poisoned: with deterministic algorithms on, torch fills what it does not initialise with NaN, and a
place that a kernel misses fails every comparison.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lola_ds.kernels import (
    activation,
    averages,
    denoising,
    noise,
    norm,
    reference,
    residual,
    rotary,
)

ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""The distance from one to the next number."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def assert_rounded(y: Tensor, exact: Tensor, slack: float = 0.0) -> None:
    """Within 2 units in the last place of the float64 result in the dtype of `y`.

    In float32, sums and transcendental functions of inputs of order one add their own rounding:
    16 units of the largest value; `slack` adds as many for gradients through half-width outputs.
    """
    assert y.shape == exact.shape
    assert not y.isnan().any()
    unit = ROUNDING[y.dtype]
    rounded = exact.to(y.dtype).double()
    ulp = unit * 2.0 ** rounded.abs().clamp(min=1e-3).log2().floor()
    wide = max(ROUNDING[torch.float32] * 16, slack * unit) * float(exact.abs().max())
    excess = (y.double() - rounded).abs() - 2 * ulp - wide
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than allowed"


def compare(
    kernel: Callable[..., Tensor | tuple[Tensor, ...]],
    truth: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    trained: Sequence[int],
    slack: float = 4.0,
) -> None:
    """Values to 2 units in the last place, and the gradients of the inputs numbered `trained`."""
    results = []
    for function, wide in ((kernel, False), (truth, True)):
        own = [
            x.double() if wide and x is not None and x.is_floating_point() else x for x in inputs
        ]
        for i in trained:
            own[i] = own[i].detach().requires_grad_()
        outputs = function(*own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        grads = [torch.randn(y.shape) for y in outputs]
        if not wide:
            kinds = [y.dtype for y in outputs]
        grads = [
            g.to(kind).double() if wide else g.to(kind)
            for g, kind in zip(grads, kinds, strict=True)
        ]
        gradients = torch.autograd.grad(outputs, [own[i] for i in trained], grads)
        results.append(([y.detach() for y in outputs], gradients))
    (values, gradients), (exact_values, exact_gradients) = results
    for y, exact in zip(values, exact_values, strict=True):
        assert_rounded(y, exact)
    coarsest = max(ROUNDING[y.dtype] for y in values)
    for g, exact in zip(gradients, exact_gradients, strict=True):
        assert_rounded(g, exact, slack * coarsest / ROUNDING[g.dtype])


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("dtype", "B", "T", "heads", "d", "axes", "normalised"),
    [
        (F32, 2, 7, 3, 12, 2, True),
        (F32, 3, 1, 1, 32, 1, True),
        (F32, 2, 7, 2, 16, 3, False),
        (BF16, 1, 320, 2, 64, 3, True),
        (BF16, 1, 1281, 1, 32, 2, True),
        (BF16, 2, 7, 16, 128, 4, True),
        (F16, 2, 33, 2, 48, 2, True),
        (F16, 2, 7, 2, 16, 0, True),
    ],
)
def test_qk_norm_rope(
    dtype: torch.dtype, B: int, T: int, heads: int, d: int, axes: int, normalised: bool
) -> None:
    coordinates = torch.randint(0, 20, (T, axes)).float() if axes else None
    theta = 0.3 * draw(axes, heads * d // 2) if axes else None
    compare(
        lambda *x: rotary.qk_norm_rope(*x, norm=normalised),
        lambda *x: reference.qk_norm_rope(*x, norm=normalised),
        [draw(B, T, 3, heads, d, dtype=dtype), coordinates, theta],
        [0, 2] if axes else [0],
    )


def test_values_are_copied_for_a_backward_alone() -> None:
    qkv, coordinates, theta = draw(2, 7, 3, 2, 16), torch.arange(7.0).view(7, 1), draw(1, 16)
    trained = rotary.qk_norm_rope(qkv, coordinates, theta)
    with torch.no_grad():
        sampled = rotary.qk_norm_rope(qkv, coordinates, theta)
    assert trained[2].is_contiguous()
    assert sampled[2].data_ptr() == qkv[:, :, 2].data_ptr()
    for a, b in zip(trained, sampled, strict=True):
        assert torch.equal(a, b)


def test_qk_norm_rope_walks_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs: each takes several samples, the last fewer."""
    monkeypatch.setattr(rotary, "PROGRAMS", 10)
    monkeypatch.setattr(rotary, "TILE", 64)
    grid, sizes = rotary._launch(5, 6, 2, 16)
    assert sizes["samples"] > 1
    assert 5 % sizes["samples"]
    assert sizes["samples"] * grid[2] >= 5
    coordinates = torch.randint(0, 20, (6, 2)).float()
    inputs = [draw(5, 6, 3, 2, 16), coordinates, 0.3 * draw(2, 16)]
    compare(rotary.qk_norm_rope, reference.qk_norm_rope, inputs, [0, 2])


@pytest.mark.parametrize(
    ("dtype", "B", "T", "H", "shared"),
    [
        (F32, 2, 7, 96, False),
        (F32, 2, 1, 32, True),
        (BF16, 1, 320, 200, False),
        (F16, 1, 3, 1281, True),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_gated_residual(
    dtype: torch.dtype, B: int, T: int, H: int, shared: bool, skip: bool
) -> None:
    gates = 1 if shared else B
    inputs = [draw(B, T, H), draw(B, T, H, dtype=dtype), draw(gates, 1, H)]
    if skip:
        inputs += [draw(B, T, H), draw(gates, 1, H)]
    compare(residual.gated_residual, reference.gated_residual, inputs, range(len(inputs)))


@pytest.mark.parametrize(
    ("dtype", "B", "T", "H", "shared"),
    [
        (F32, 2, 7, 96, False),
        (F32, 2, 1, 32, True),
        (BF16, 1, 320, 256, False),
        (BF16, 1, 1281, 32, True),
        (F16, 2, 3, 2048, False),
    ],
)
def test_modulate(dtype: torch.dtype, B: int, T: int, H: int, shared: bool) -> None:
    gates = 1 if shared else B
    x = 3 * draw(B, T, H) + 1
    compare(
        lambda *x: norm.modulate(*x, dtype),
        lambda *x: reference.modulate(*x, torch.float64),
        [x, draw(gates, 1, H), draw(gates, 1, H)],
        [0, 1, 2],
    )


@pytest.mark.parametrize(("dtype", "T", "H"), [(F32, 7, 96), (BF16, 70, 200), (F16, 3, 2048)])
def test_fork_modulated(dtype: torch.dtype, T: int, H: int) -> None:
    """The three gradients are added before they are rounded."""
    inputs = [3 * draw(2, T, H) + 1, draw(2, 1, H), draw(2, 1, H)]
    compare(
        lambda *x: norm.modulate_branches(*x, dtype),
        lambda *x: reference.modulate_branches(*x, torch.float64),
        inputs,
        [0, 1, 2],
    )
    with torch.no_grad():
        y, z, x = norm.modulate_branches(*inputs, dtype)
    assert torch.equal(y, norm.modulate(*inputs, dtype))
    assert torch.equal(z, y)
    assert torch.equal(x, inputs[0])


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(F32, (2, 5, 3, 7)), (BF16, (1, 64, 16, 20)), (F16, (3, 96, 1, 1)), (BF16, (2, 300, 1, 3))],
)
def test_channel_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (2 * draw(*shape) - 1).to(dtype).contiguous(memory_format=torch.channels_last)
    compare(norm.channel_norm, reference.channel_norm, [x], [0])
    y = norm.channel_norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "shape"), [(F32, (2, 3, 4, 5)), (BF16, (3, 80, 5, 8, 8)), (F32, (1, 2, 3, 1, 5, 7))]
)
def test_denoising_errors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    B, _, L = shape[:3]
    mask = (torch.arange(L) < 1).repeat(B, 1)
    mask[-1] = ~mask[-1]
    alpha, sigma = torch.rand(B) + 0.1, torch.logspace(-3, 2, B)
    inputs = [draw(*shape, dtype=dtype), draw(*shape), draw(*shape), mask, alpha, sigma]
    compare(denoising.denoising_errors, reference.denoising_errors, inputs, [0])


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [(1,), (7, 33), (3, 1281, 5)])
def test_silu_dropout(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    p = 0.25
    seed = torch.tensor([1 << 40])
    threshold = round(p * activation.LEVELS)
    keep = activation.masked_silu(torch.ones(shape), seed, threshold) > 0

    def truth(x: Tensor) -> Tensor:
        return reference.silu_dropout(x, keep, p)

    def kernel(x: Tensor) -> Tensor:
        return activation.masked_silu(x, seed, threshold)

    compare(kernel, truth, [2 * draw(*shape, dtype=dtype)], [0])


def test_dropout_is_fair_and_depends_on_the_seed() -> None:
    n, p = 60_000, 0.1
    x = torch.ones(n)
    seeds = [torch.tensor([s]) for s in (3, 4)]
    a, b = (activation.masked_silu(x, seed, round(p * activation.LEVELS)) > 0 for seed in seeds)
    tolerance = 4 * (p * (1 - p) / n) ** 0.5
    assert abs((~a).float().mean() - p) < tolerance
    assert abs((~a[:-1] & ~a[1:]).float().mean() - p * p) < tolerance
    assert abs((~a & ~b).float().mean() - p * p) < tolerance
    torch.manual_seed(7)
    first = activation.silu_dropout(x, p)
    torch.manual_seed(7)
    assert torch.equal(first, activation.silu_dropout(x, p))
    assert not torch.equal(first, activation.silu_dropout(x, p))


def test_ema_follows_each_decay() -> None:
    weights = [draw(5), draw(3, 1281), draw(1)]
    decays = [0.9, 0.999]
    ours = [[draw(*w.shape) for w in weights] for _ in decays]
    truth = [[a.double() for a in average] for average in ours]
    averages.ema(ours, weights, decays)
    reference.ema(truth, [w.double() for w in weights], decays)
    for average, exact in zip(ours, truth, strict=True):
        for a, e in zip(average, exact, strict=True):
            assert_rounded(a, e)
    with pytest.raises(ValueError, match="float32"):
        averages.ema([[weights[0].half()]], [weights[0]], [0.5])


def operators() -> Iterator[tuple[str, tuple]]:
    """Every operator, and arguments for it."""
    x, y, gate = draw(2, 7, 24), draw(2, 7, 24, dtype=BF16), draw(2, 1, 24)
    seed, field = torch.tensor([1]), draw(3, 8)
    yield "modulate", (x, gate, gate, BF16, 1e-5)
    mean, rstd = norm.modulated_norm(x, gate, gate, BF16, 1e-5)[1:]
    yield "modulate_backward", (x, gate, mean, rstd, y, y, x)
    yield "channel_norm", (field, 1e-5)
    yield "channel_norm_backward", (field, *norm.rows_norm(field, 1e-5)[1:], field)
    yield "gated_residual", (x, y, gate, x + 1, gate)
    yield "gated_residual_backward", (x, y, gate, x + 1, gate, x)
    yield "silu_dropout", (y, seed, 1000)
    yield "silu_dropout_backward", (y, y, seed, 1000)
    qkv, coordinates, theta = draw(2, 7, 3, 2, 12), torch.arange(7.0).view(7, 1), draw(1, 12)
    yield "qk_norm_rope", (qkv, coordinates, theta, True, 1e-5, True)
    q, k, v, r = rotary.rotate_qk(qkv, coordinates, theta, True, 1e-5, True)
    yield "qk_norm_rope_backward", (q, k, r, coordinates, theta, q, k, v, True)
    window, mask, scale = draw(2, 3, 4, 5), torch.rand(2, 4) < 0.5, torch.rand(2) + 0.1
    yield "denoising_errors", (window, window, window, mask, scale, scale)
    weight = draw(2, 4)
    yield "denoising_errors_backward", (window, window, window, mask, scale, scale, weight)


def test_operators_give_new_tensors_of_the_shapes_they_say() -> None:
    """What a custom operator of torch checks at every call; see `kernels/operator.py`."""
    for name, arguments in operators():
        overload = getattr(torch.ops.lola_ds, name).default
        utils = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(overload, arguments, test_utils=utils)


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch, forward and backward, makes that device the current one, whatever it was."""
    entered = []

    def device_of(x: Tensor) -> contextlib.nullcontext:
        entered.append(x)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, gate = draw(1, 2, 8).requires_grad_(), draw(1, 1, 8)
    field = draw(1, 2, 1, 3).requires_grad_()
    scale = torch.ones(1)
    for y in (
        rotary.qk_norm_rope(draw(1, 2, 3, 1, 8).requires_grad_())[0],
        residual.gated_residual(x, x, gate),
        norm.modulate(x, gate, gate),
        norm.channel_norm(field),
        activation.silu_dropout(x, 0.5),
        denoising.denoising_errors(field, field, field, torch.ones(1, 1) > 0, scale, scale),
    ):
        y.sum().backward()
    averages.ema([[gate.clone()]], [gate], [0.5])
    noise.seeded_normal(torch.arange(2, device="cpu"), torch.Size([3]), x.device)
    assert len(entered) == 14


def test_strided_inputs_are_taken() -> None:
    """Transposed streams and gates cut from a wider tensor give what contiguous ones give."""
    x, y, skip = (draw(7, 2, 24).transpose(0, 1) for _ in range(3))
    a, b, c, d = draw(2, 1, 96).chunk(4, dim=-1)
    compare(residual.gated_residual, reference.gated_residual, [x, y, c, skip, d], range(5))
    compare(norm.modulate, reference.modulate, [x, a, b], range(3))
    wide = draw(2, 7, 3, 2, 16)[..., ::2]
    inputs = [wide, torch.arange(7.0).view(7, 1), draw(16, 1).view(1, 16)[:, :8]]
    compare(rotary.qk_norm_rope, reference.qk_norm_rope, inputs, [0, 2])
    transposed = draw(3, 5, 4).transpose(0, 2)
    seed = torch.tensor([1])
    plain = activation.masked_silu(transposed.contiguous(), seed, 1000)
    assert torch.equal(activation.masked_silu(transposed, seed, 1000), plain)
    field = draw(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    y = activation.silu_dropout(field, 0.5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    silu = torch.nn.functional.silu(field)
    torch.testing.assert_close(y[y != 0], 2 * silu[y != 0])


def philox_normal(seed: int, size: int) -> np.ndarray:
    """`size` normal numbers of Philox 4x32-10 and Box–Muller, word by word, in float64."""
    calls = -(-size // (4 * noise.BLOCK)) * noise.BLOCK
    place = np.arange(calls, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    x = [place & low, place >> np.uint64(32), 0 * place, 0 * place]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        first = (b >> np.uint64(32)) ^ x[1] ^ np.uint64(keys[0])
        second = (a >> np.uint64(32)) ^ x[3] ^ np.uint64(keys[1])
        x = [first, b & low, second, a & low]
        keys = [(k + w) & 0xFFFFFFFF for k, w in zip(keys, (0x9E3779B9, 0xBB67AE85))]
    pairs = []
    for w, v in (x[:2], x[2:]):
        radius = np.sqrt(-2 * np.log((w + 0.5) / 2**32))
        pairs += [radius * np.cos(2 * np.pi * v / 2**32), radius * np.sin(2 * np.pi * v / 2**32)]
    return np.stack([p.reshape(-1, noise.BLOCK) for p in pairs], axis=1).ravel()[:size]


@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 1281), (noise.BLOCK * 4,)])
def test_seeded_normal(shape: tuple[int, ...]) -> None:
    seeds = torch.tensor([0, 2**62 + 12345, 7], device="cpu")
    found = noise.seeded_normal(seeds, torch.Size(shape), torch.empty(0).device)
    assert found.shape == (3, *shape)
    for x, seed in zip(found.cpu(), seeds.tolist()):
        exact = philox_normal(seed, x.numel()).reshape(shape)
        np.testing.assert_allclose(x.numpy(), exact, rtol=1e-4, atol=1e-5)
    alone = noise.seeded_normal(seeds[1:2], torch.Size(shape), found.device)
    assert torch.equal(alone[0], found[1])


def test_seeded_noise_is_standard_normal() -> None:
    x = noise.seeded_normal(
        torch.arange(4, device="cpu"), torch.Size([20_000]), torch.empty(0).device
    )
    moments = [(x**k).mean(dim=1) for k in range(1, 5)]
    for found, expected, width in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96)):
        assert (found - expected).abs().max() < 5 * (width / 20_000) ** 0.5
    assert (torch.corrcoef(x) - torch.eye(4)).abs().max() < 0.04
