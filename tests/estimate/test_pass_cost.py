"""Traced costs against torch's own counter and allocator, on the same networks with values."""

from __future__ import annotations

from typing import Any

import pass_memory_worker as worker
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lola_ds.build import build_model, complete_network
from lola_ds.build.objective import build_objective
from lola_ds.estimate.pass_cost import PassCost
from lola_ds.estimate.trace import trace_training

GROUPS = {"autoencoder": "ae", "surrogate": "surrogate", "diffusion": "denoiser"}


def configure(task: str, policy: Any = "none", precision: str = "fp32") -> dict[str, Any]:
    config = worker.make_config(task, 1, 1) | {"precision": precision}
    config[GROUPS[task]] |= {"checkpointing": policy}
    return config


def trace(config: dict[str, Any], samples: int = worker.SAMPLES) -> PassCost:
    return trace_training(config, worker.FRAME, worker.LABELS, samples)


def run_pass(config: dict[str, Any]) -> None:
    """The traced pass with values."""
    config = complete_network(config, worker.FRAME, worker.LABELS)
    objective = build_objective(config, build_model(config))
    objective(worker.make_batch(config["task"], worker.SAMPLES))[0].backward()


@pytest.mark.parametrize("task", GROUPS)
@pytest.mark.parametrize("policy", ["none", "full"])
def test_flops_equal_torch_s_counter(task: str, policy: str) -> None:
    """To the last operation where attention is written out; fused, torch counts none on CPUs."""
    config = configure(task, policy)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_pass(config)
    assert trace(config).flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("task", GROUPS)
def test_memory_equals_the_allocator_s(task: str) -> None:
    """What convolutions allocate while they run included."""
    config = configure(task)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run_pass(config)
    peak = worker.peak_bytes(record)
    cost = trace(config)
    assert peak == pytest.approx(4 * cost.parameters + cost.with_gradients, rel=0.03)


def test_policies_trade_memory_for_work() -> None:
    costs = {policy: trace(configure("surrogate", policy)) for policy in ("none", 2, "full")}
    selective = trace(configure("surrogate", "selective"))
    none, half, full = costs.values()
    assert full.activations < half.activations < none.activations
    assert full.activations < selective.activations < none.activations
    assert none.flops == selective.flops < half.flops < full.flops
    assert full.flops == pytest.approx(4 / 3 * none.flops, rel=0.05)


def test_bfloat16_halves_the_traffic_of_products() -> None:
    half, single = (trace(configure("surrogate", precision=p)) for p in ("bf16", "fp32"))
    assert half.flops == single.flops
    assert all(k.half for k in half.kernels if k.flops > 10**8)
    assert not any(k.half for k in single.kernels)
    assert half.activations < single.activations


def test_tracing_allocates_nothing() -> None:
    config = configure("surrogate")
    config["surrogate"] |= {"hid_channels": 8192, "hid_blocks": 1}
    cost = trace(config)
    assert cost.parameters > 5e8
    assert cost.activations > 2**28


def test_parameters_of_the_trace_are_those_of_the_model() -> None:
    config = configure("diffusion")
    model = build_model(complete_network(config, worker.FRAME, worker.LABELS))
    assert trace(config).parameters == sum(p.numel() for p in model.parameters())
    assert torch.is_tensor(next(model.parameters()))
