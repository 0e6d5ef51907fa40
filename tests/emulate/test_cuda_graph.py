"""Sampling as a CUDA graph: it neither waits for the device nor copies to or from it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lola_ds.emulate.adams_bashforth import ABSampler
from lola_ds.emulate.cuda_graph import CudaGraphed, CudaGraphedSampling
from lola_ds.emulate.sampling import ConditionedDenoiser, sample
from lola_ds.models import make_denoiser
from lola_ds.models.denoiser import Denoiser
from lola_ds.models.schedules import make_schedule


class Devices(TorchDispatchMode):
    """Notes the operators that touch both a GPU's tensors and the processor's."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in leaves}) > 1:
            self.copies.append(str(func))
        return result


class Network(nn.Module):
    """A network without indexing, which torch built without CUDA cannot do on fake tensors."""

    def forward(self, x: Tensor, time: Tensor, **conditions: Tensor) -> Tensor:
        return (x * conditions["mask"]).tanh() + time.view(-1, 1, 1, 1).tanh()


def make_window(device: str) -> tuple[Denoiser, list[Tensor]]:
    """A denoiser and the mask, the known values, the labels and the noise of two windows."""
    denoiser = Denoiser(Network(), make_schedule({"name": "log_logit"}))
    empty = functools.partial(torch.zeros, device=device)
    inputs = [empty(1, 1, 3, 1, dtype=torch.bool)]
    return denoiser, [*inputs, empty(2, 3, 3, 4), empty(2, 2), empty(2, 3, 3, 4)]


def test_sampling_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors of a GPU, which have no values."""
    simple: Any = make_window("cpu")[0]
    plan = ABSampler(simple, order=3, steps=4, silent=True).plan()
    monkeypatch.setattr(ABSampler, "plan", lambda self: plan)
    with FakeTensorMode(), Devices() as devices:
        denoiser, (mask, *inputs) = make_window("cuda")
        x, label, noise = inputs
        conditioned: Any = ConditionedDenoiser(denoiser, mask, torch.where(mask, x, 0.0), label)
        solve = ABSampler(conditioned, order=3, steps=4, silent=True)
        assert solve(noise).device.type == "cuda"
        assert devices.copies == []


def test_without_a_gpu_the_function_is_called_as_it_is() -> None:
    denoiser, (mask, *inputs) = make_window("cpu")
    x, label, noise = (x.normal_() for x in inputs)
    expected = sample(denoiser, mask, x, label, steps=3, x_1=noise)
    function = CudaGraphed(lambda mask, x, y, z: sample(denoiser, mask, x, y, "ab", 3, z))
    assert torch.equal(function(mask, x, label, noise), expected)


@pytest.mark.parametrize("sampler", ["ab", "ddpm"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sampling_is_the_same(sampler: str, labelled: bool, device: str) -> None:
    """At calls with equal and with different options; on a GPU, `ab` runs as a graph."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    denoiser = make_denoiser(
        channels=3, schedule={"name": "log_logit"}, label_features=2 if labelled else 0,
        emb_features=8, spatial=2, hid_channels=16, hid_blocks=1, attention_heads=2,
    ).to(device).requires_grad_(False)  # fmt: skip
    draw = CudaGraphedSampling()
    for steps in (2, 2, 3):
        _, (mask, *inputs) = make_window(device)
        x, label, noise = (x.normal_() for x in inputs)
        found, expected = (
            function(
                denoiser, mask, x, label if labelled else None, sampler=sampler, steps=steps,
                x_1=noise, generator=torch.Generator().manual_seed(0),
            )
            for function in (draw, sample)
        )  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (draw.graphed is not None) is (device == "cuda" and sampler == "ab")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replays_equal_calls() -> None:
    """On new values, and after the weights changed in place."""
    denoiser = make_denoiser(
        channels=3, schedule={"name": "log_logit"}, label_features=2, emb_features=8, spatial=2,
        hid_channels=16, hid_blocks=1, attention_heads=2,
    ).cuda()  # fmt: skip
    _, (mask, *inputs) = make_window("cuda")

    def call(mask: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return sample(denoiser, mask, x, y, "ab", 4, z)

    function = CudaGraphed(call)
    for _ in range(3):
        inputs = [torch.randn_like(x) for x in inputs]
        torch.testing.assert_close(function(mask, *inputs), call(mask, *inputs), rtol=1e-3, atol=0)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.mul_(0.9)
