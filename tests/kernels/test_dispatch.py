"""The choice between torch and Triton, its log, and the outputs of a network with either."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lola_ds import kernels
from lola_ds.kernels import reference
from lola_ds.nn.compilation import compile_blocks
from lola_ds.nn.dcae import DCEncoder
from lola_ds.nn.vit import ViT, ViTBlock

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the kernels run: on a GPU, or in the interpreter where there is none."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = kernels.get_kernel_mode()
    yield
    kernels.set_kernel_mode(before)


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter is off where there is a GPU")
def test_torch_runs_on_a_cpu_unless_triton_is_forced(caplog: pytest.LogCaptureFixture) -> None:
    x, a = torch.randn(2, 3, 8), torch.randn(2, 1, 8)
    expected = reference.modulate(x, a, a)
    with caplog.at_level(logging.DEBUG, "lola_ds.kernels"):
        kernels.set_kernel_mode("auto")
        for _ in range(3):
            assert torch.equal(kernels.modulate_branches(x, a, a)[0], expected)
        kernels.set_kernel_mode("triton")
        assert not torch.equal(kernels.modulate_branches(x, a, a)[0], expected)
        kernels.set_kernel_mode("torch")
        assert torch.equal(kernels.modulate_branches(x, a, a)[0], expected)
    first, second = caplog.messages
    assert first.startswith("modulate, float32 on cpu: torch (tensors lie on cpu")
    assert second == "modulate, float32 on cpu: triton"


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kernels=cuda is unknown; choose one of auto, torch"):
        kernels.set_kernel_mode("cuda")
    kernels.set_kernel_mode("triton")
    x, a = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"modulate cannot run: torch.float64 .* kernels=auto"):
        kernels.modulate_branches(x, a, a)[0]
    with pytest.raises(ValueError, match="heads of 258 > 256 channels"):
        kernels.qk_norm_rope(torch.randn(1, 2, 3, 1, 258))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"tensors lie on cpu .*TRITON_INTERPRET=1"):
        kernels.modulate_branches(x.float(), a.float(), a.float())


def make_vit(blocks: int = 1, **options: object) -> ViT:
    torch.manual_seed(0)
    vit = ViT(2, 2, 1, 4, 16, blocks, 1, spatial=2, **options)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "ada_zero.2" in name:
                parameter.mul_(30)
    return vit.to(DEVICE)


def train(mode: str, steps: int, precision: torch.dtype | None = None, **options: object) -> Tensor:
    """The losses of a tiny transformer that learns to blur fields."""
    kernels.set_kernel_mode(mode)
    vit = make_vit(**options)
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(1, 2, 3, 5, generator=generator).to(DEVICE)
        mod = torch.randn(1, 4, generator=generator).to(DEVICE)
        with torch.autocast(DEVICE, precision, enabled=precision is not None):
            y = vit(x, mod, x[:, :1])
        loss = (y - (x + x.roll(1, -1)) / 2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        pytest.param(None, 2e-5, id="fp32"),
        pytest.param(torch.bfloat16, 2e-2, id="bf16", marks=pytest.mark.slow),
    ],
)
def test_fifty_steps_stay_within_rounding(precision: torch.dtype | None, tolerance: float) -> None:
    plain, fused = (train(mode, 50, precision) for mode in ("torch", "triton"))
    assert plain[-10:].mean() < 0.7 * plain[:10].mean()
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=0)


def test_kernels_are_deterministic() -> None:
    assert torch.equal(train("triton", 3, dropout=0.1), train("triton", 3, dropout=0.1))


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputed_blocks_draw_the_same_dropout(policy: str) -> None:
    plain, again = (train("triton", 3, checkpointing=p, dropout=0.2) for p in ("none", policy))
    assert torch.equal(plain, again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
def test_compiled_blocks_hold_the_kernels() -> None:
    """One graph without a break, which calls the kernels' operators."""
    kernels.set_kernel_mode("triton")
    x, mod, cond = (torch.randn(s, device=DEVICE) for s in ((2, 2, 3, 5), (2, 4), (2, 1, 3, 5)))
    results = []
    for compiled in (False, True):
        vit = make_vit(blocks=2)
        if compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            assert compile_blocks(vit) == [ViTBlock]
        y = vit(x, mod, cond)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in vit.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    report = torch._dynamo.utils.counters
    assert report["stats"]["unique_graphs"] == 1
    assert not report["graph_break"]


def test_convolutional_networks_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    net = DCEncoder(2, 3, (8, 12), (1, 1)).to(DEVICE)
    x = torch.randn(2, 2, 8, 8, device=DEVICE)
    results = []
    for mode in ("torch", "triton"):
        kernels.set_kernel_mode(mode)
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
