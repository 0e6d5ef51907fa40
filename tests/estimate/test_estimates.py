"""The memory model against real trainings; communication, settings and limits of the search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pass_memory_worker as worker
import pytest
from ranks import run_ranks

from lola_ds.config import fill_deepspeed
from lola_ds.estimate.memory import MemoryEstimate, estimate_memory
from lola_ds.estimate.pass_cost import Kernel, PassCost
from lola_ds.estimate.settings import SettingSearch, zero_comm_bytes
from lola_ds.estimate.trace import trace_training
from lola_ds.estimate.workload import Workload, pass_seconds
from lola_ds.hardware import GIB, GPUS

STAGES = ("0", "1", "2", "3")
OFFLOADED = ("1_offload", "2_offload", "3_offload")


def expected_peak(task: str, stage: str, world_size: int) -> int:
    """The estimate for the training that the worker measures, whose device is the host."""
    config = worker.make_config(task, stage, world_size)
    zero = fill_deepspeed(config, world_size)["zero_optimization"] | worker.small_buckets(stage)
    low, high = (trace_training(config, worker.FRAME, worker.LABELS, n) for n in (2, 4))
    workload = Workload("none", low, high)
    memory = estimate_memory(workload, micro_batch=worker.SAMPLES, zero=zero, world_size=world_size)
    return memory.peak + memory.host


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("tasks", "stages", "world_size"),
    [
        (("surrogate",), STAGES, 1),
        pytest.param(
            tuple(worker.WORDS),
            STAGES + OFFLOADED,
            2,
            marks=[pytest.mark.slow, pytest.mark.timeout(900)],
        ),
    ],
    ids=["transformer-1", "all-2"],
)
def test_memory_equals_what_the_allocator_held(
    tasks: tuple[str, ...], stages: tuple[str, ...], world_size: int, tmp_path: Path
) -> None:
    """A transformer, a UNet and a convolutional autoencoder, at every stage."""
    jobs = [(task, stage) for task in tasks for stage in stages]
    words = [f"{task}:{stage}" for task, stage in jobs]
    run_ranks([worker.__file__, str(tmp_path / "peaks"), *words], world_size, timeout=800)
    measured = json.loads((tmp_path / "peaks").read_text())
    expected = {word: expected_peak(*job, world_size) for word, job in zip(words, jobs)}
    assert measured == pytest.approx(expected, rel=0.1)


def pass_cost(samples: int, activations: int = GIB) -> PassCost:
    """A pass of two kernels, with memory (bytes a sample) and work in proportion to the samples."""
    matmul = Kernel(flops=samples * 10**12, bytes=10**6, half=True)
    copy = Kernel(flops=0, bytes=samples * 10**9, half=False)
    size = samples * activations
    return PassCost(samples, 250_000_000, (matmul, copy), activations=size, with_gradients=size)


WORKLOAD = Workload("none", pass_cost(2), pass_cost(4))
FRUGAL = Workload(
    "full",
    PassCost(2, 250_000_000, (Kernel(10**13, 0, True),), GIB // 4, GIB // 4),
    PassCost(4, 250_000_000, (Kernel(2 * 10**13, 0, True),), GIB // 2, GIB // 2),
)
ZERO: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0, "reduce_bucket_size": 10},
    "zero1": {"stage": 1, "reduce_bucket_size": 10, "overlap_comm": False},
    "zero2": {"stage": 2, "reduce_bucket_size": 10, "overlap_comm": False},
    "zero3": {
        "stage": 3,
        "reduce_bucket_size": 10,
        "stage3_max_live_parameters": 10**9,
        "stage3_prefetch_bucket_size": 10,
    },
}


def memory_of(
    zero: dict[str, Any], micro_batch: int, accumulation: int = 1, averages: int = 1
) -> MemoryEstimate:
    """The memory of one of four ranks."""
    return estimate_memory(
        WORKLOAD,
        micro_batch=micro_batch,
        zero=zero,
        world_size=4,
        accumulation=accumulation,
        averages=averages,
    )


def make_search(gpu: str = "h100", batch_size: int = 64) -> SettingSearch:
    return SettingSearch([WORKLOAD, FRUGAL], ZERO, batch_size, GPUS[gpu], network=45.0)


def test_costs_are_linear_in_the_micro_batch() -> None:
    assert WORKLOAD.flops == 10**12
    assert WORKLOAD.sample_bytes == GIB
    assert WORKLOAD.activations(7) == 7 * GIB


def test_each_kernel_is_bound_by_what_takes_longest() -> None:
    h100 = GPUS["h100"]
    assert pass_seconds(pass_cost(2), h100) == pytest.approx(2 / 790 + 2 / 3000)
    tiny = PassCost(1, 1, (Kernel(1, 1, False),) * 10, 0, 0)
    assert pass_seconds(tiny, h100) == pytest.approx(40e-6)
    single = PassCost(1, 1, (Kernel(10**12, 0, False),), 0, 0)
    assert pass_seconds(single, h100) == pytest.approx(1 / h100.single)


def test_states_of_each_stage() -> None:
    """A billion bytes of weights on 4 ranks, at the fullest moment of a step without samples."""
    w = 10**9
    resident = {"zero0": 3 * w + w / 4, "zero1": 2 * w, "zero2": 2 * w, "zero3": 1.5 * w + 40}
    for stage, size in resident.items():
        assert memory_of(ZERO[stage], 0).resident == size
        twice = memory_of(ZERO[stage], 0, averages=2)
        assert twice.resident == size + w / 4
    assert memory_of(ZERO["zero0"], 0).peak == resident["zero0"] + 2 * w
    once = {stage: memory_of(ZERO[stage], 8) for stage in ZERO}
    several = {stage: memory_of(ZERO[stage], 8, accumulation=2) for stage in ZERO}
    kept = {stage: several[stage].activation_peak - once[stage].activation_peak for stage in ZERO}
    assert kept == {"zero0": w, "zero1": w, "zero2": w // 4, "zero3": 0}


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_offloading_moves_states_to_the_host(stage: str) -> None:
    """Master, gradients, Adam and average leave, to a buffer; at stage 3 the weights follow."""
    w, cpu = 10**9, {"device": "cpu"}
    here = memory_of(ZERO[stage], 8)
    moved = memory_of(ZERO[stage] | {"offload_optimizer": cpu}, 8)
    assert (here.host, moved.host) == (0, 6 * w / 4)
    assert here.peak - moved.peak == (5 * w / 4 if stage == "zero3" else w)
    both = memory_of(ZERO[stage] | {"offload_optimizer": cpu, "offload_param": cpu}, 8)
    assert both.host == (7 if stage == "zero3" else 6) * w / 4


def test_nvme_holds_what_the_host_would() -> None:
    """Of which masters and moments of three sub-groups are in the host's memory."""
    w, nvme, few = 10**9, {"device": "nvme"}, {"sub_group_size": 10**6}
    here = memory_of(ZERO["zero3"], 8)
    moved = memory_of(ZERO["zero3"] | few | {"offload_optimizer": nvme}, 8)
    assert (moved.nvme, moved.host) == (5 * w / 4, 9 * 4 * 10**6)
    assert here.peak - moved.peak == 5 * w / 4
    both = ZERO["zero3"] | {"sub_group_size": 10**9, "offload_optimizer": nvme}
    both |= {"offload_param": nvme}
    memory = memory_of(both, 8)
    assert (memory.nvme, memory.host) == (6 * w / 4, 3 * w / 4)


def test_offloading_is_chosen_only_when_it_is_needed() -> None:
    offload = ZERO["zero2"] | {"offload_optimizer": {"device": "cpu"}}
    search = SettingSearch(
        [WORKLOAD], {**ZERO, "offloaded": offload}, 64, GPUS["h100"], network=45.0
    )
    best = search.best(8)
    assert best is not None
    assert best.deepspeed != "offloaded"
    large = (
        replace(WORKLOAD.low, parameters=4 * 10**9),
        replace(WORKLOAD.high, parameters=4 * 10**9),
    )
    huge = SettingSearch([Workload("none", *large)], search.stages, 64, GPUS["h100"], network=45.0)
    assert {setting.deepspeed for setting in huge.settings(1)} == {"offloaded"}


def test_ranks_that_share_samples_take_as_many_as_one() -> None:
    """Four GPUs of which two share a sample: as many samples a pass as two, and more sent."""
    sending = replace(WORKLOAD.low, kernels=(*WORKLOAD.low.kernels, Kernel(0, 0, False, 10**9)))
    shared = Workload("none", sending, WORKLOAD.high)
    search = SettingSearch([shared], ZERO, 64, GPUS["h100"], network=45.0, sequence=2)
    (setting,) = (c for c in search.settings(4) if c.deepspeed == "zero1")
    assert setting.micro_batch * setting.accumulation == 32
    sent = setting.accumulation * shared.comm_bytes(setting.micro_batch)
    assert (
        setting.comm_bytes
        == zero_comm_bytes(WORKLOAD.parameters, 1, 4, setting.accumulation) + sent
    )
    assert not list(search.settings(3))


@pytest.mark.parametrize(
    ("stage", "accumulation", "turns"), [(0, 4, 2), (1, 4, 2), (2, 1, 2), (2, 4, 5), (3, 4, 12)]
)
def test_comm_bytes(stage: int, accumulation: int, turns: int) -> None:
    assert zero_comm_bytes(250, stage, 4, accumulation) == turns * 1000 * 3 / 4
    assert zero_comm_bytes(250, stage, 1, accumulation) == 0


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    search = make_search()
    for stage in ZERO:
        n = search.largest_micro_batch(WORKLOAD, stage, 8)
        assert search.memory(WORKLOAD, stage, world_size=8, micro_batch=n).on_gpu <= 79 * GIB
        assert search.memory(WORKLOAD, stage, world_size=8, micro_batch=n + 1).on_gpu > 79 * GIB
    huge = Workload("none", pass_cost(2, 10**13), pass_cost(4, 10**13))
    assert search.largest_micro_batch(huge, "zero3", 8) == 0


def test_batch_is_dealt_in_the_fewest_passes_that_fit() -> None:
    settings = {(c.deepspeed, c.policy): c for c in make_search().settings(1)}
    assert settings["zero1", "none"].micro_batch == 64
    (small,) = {
        c
        for c in make_search("rtx4090").settings(1)
        if (c.deepspeed, c.policy) == ("zero1", "none")
    }
    assert (small.micro_batch, small.accumulation) == (8, 8)
    assert not list(make_search(batch_size=60).settings(8))


def test_recomputing_is_chosen_only_when_it_is_needed() -> None:
    best = make_search().best(8)
    assert best is not None
    assert best.policy == "none"
    tight = Workload("none", pass_cost(2, 2**37), pass_cost(4, 2**37))
    assert make_search().largest_micro_batch(tight, "zero1", 8) == 0
    needy = SettingSearch([tight, FRUGAL], ZERO, 64, GPUS["h100"], network=45.0).best(8)
    assert needy is not None
    assert needy.policy == "full"


def test_slower_networks_take_longer_between_nodes_only() -> None:
    fast, slow = (SettingSearch([WORKLOAD], ZERO, 64, GPUS["h100"], n).best for n in (45.0, 1.4))
    for world_size, same in ((8, True), (16, False)):
        a, b = fast(world_size), slow(world_size)
        assert a is not None
        assert b is not None
        assert (a.seconds == b.seconds) == same


def test_memory_on_a_gpu_adds_what_torch_does_not_allocate() -> None:
    memory = MemoryEstimate(100 * GIB, activation_peak=20 * GIB, optimizer_peak=30 * GIB)
    assert memory.peak == 130 * GIB
    assert memory.on_gpu == pytest.approx(1.05 * 130 * GIB + 1.5 * GIB)
