"""The benchmarks run, and write what they promise, on the smallest case."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import verdict
from benchmarks.runtime import Clock, TimedEngine
from benchmarks.step import (
    CASES,
    Case,
    Side,
    compare_what_fits,
    count_flops,
    make_batch,
    make_model,
)

ROOT = Path(__file__).resolve().parents[1]


def run(module: str, *words: str) -> list[dict[str, str]]:
    """The rows that a benchmark writes."""
    out = words[0].partition("=")[2]
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(out) as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_runtime(tmp_path: Path) -> None:
    """The loop's parts are there, and most of a step is the engine's even here."""
    words = [f"folder={tmp_path}", "steps=20", "resolution=16", "threads=1"]
    rows = {row["what"]: row for row in run("runtime", f"out={tmp_path / 'r.csv'}", *words)}
    shares = {name: float(row["share"]) for name, row in rows.items()}
    engine = sum(shares[name] for name in ("forward", "backward", "optimizer"))
    assert 0.5 < engine < 1 == shares["step"]
    assert 0 < shares["overhead"] < 0.5
    for name in ("data", "prepare", "checks", "average", "record", "bare step"):
        assert shares[name] > 0
    assert all(row["commit"] and row["device"] for row in rows.values())


def test_clock_of_the_runtime_books_calls_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        """Takes 3 seconds forward, 5 backward and 1 for the optimizer."""

        name = "engine"

        def __call__(self, batch: int) -> int:
            now[0] += 3
            return 2 * batch

        def backward(self) -> None:
            now[0] += 5

        def step(self) -> None:
            now[0] += 1

    now = [0.0]
    monkeypatch.setattr("benchmarks.runtime.time.perf_counter", lambda: now[0])
    clock = Clock(torch.device("cpu"))
    engine = TimedEngine(Engine(), clock)
    for waited in (1, 2):
        with clock.timing("data"):
            now[0] += waited
        assert engine(4) == 8
        engine.backward()
        engine.step()
        now[0] += 0.5
        clock.end_step()
    assert engine.name == "engine"
    engines = {"forward": 3, "backward": 5, "optimizer": 1}
    assert clock.steps == [{"data": w, **engines, "step": 9.5 + w} for w in (1, 2)]


def test_operations_of_a_step_are_those_of_the_formula() -> None:
    """24 H² + 4 T H for each token and block, thrice; ends and modulation add 2 %."""
    blocks, tokens, channels = 4, 80, 256
    expected = 3 * blocks * tokens * (24 * channels**2 + 4 * tokens * channels)
    assert 1.01 < count_flops(CASES["demo"]) / expected < 1.03


def test_a_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, tried = 3, []

    def compare(name: str, case: Case, *_: object) -> list[dict]:
        tried.append((case.batch, case.members))
        if case.batch > largest:
            raise torch.OutOfMemoryError
        return [{"case": name}]

    def run() -> list[dict]:
        return compare_what_fits("demo", CASES["demo"], {}, torch.device("cpu"))

    monkeypatch.setattr("benchmarks.step.compare", compare)
    assert run() == [{"case": "demo"}]
    assert tried == [(16, 8), (8, 4), (4, 2), (2, 1)]
    largest = 0
    with pytest.raises(torch.OutOfMemoryError):
        run()


def test_a_kernel_wins_against_all_rivals_or_none() -> None:
    assert verdict({"eager": 3.0, "triton": 1.0}) == "yes"
    assert verdict({"eager": 3.0, "triton": 1.0, "compiled": 0.9}) == "no"


@pytest.mark.parametrize(
    ("words", "kernels", "count"),
    [
        pytest.param([], 8, 14, id="all"),  # averages and noise have no backward
        pytest.param(
            ["kernels=modulate,qk_norm_rope,seeded_normal", "compiled=true"],
            3,
            5,
            id="compiled",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kernels(tmp_path: Path, words: list[str], kernels: int, count: int) -> None:
    rows = run("kernels", f"out={tmp_path / 'k.csv'}", "rounds=1", "size=tiny", *words)
    assert len({row["kernel"] for row in rows}) == kernels
    assert len(rows) == count
    for row in rows:
        assert bool(row["compiled_ms"]) == bool(words)
        assert row["wins"] == ""  # an interpreter's times are no verdict
        assert float(row["triton_ms"]) > 0
        assert float(row["floor_ms"]) > 0
        assert row["commit"]
        assert row["device"]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_step(tmp_path: Path, compiled: bool) -> None:
    words = ["cases=demo", "batch_size=2", "rounds=1", f"compiled={str(compiled).lower()}"]
    rows = run("step", f"out={tmp_path / 's.csv'}", *words)
    sides = [(row["what"], row["side"]) for row in rows]
    assert sides == [(w, s) for w in ("train step", "sampling") for s in ("published", "ours")]
    for published, ours in (rows[:2], rows[2:]):
        assert published["speedup"] == "1.00"
        assert float(ours["speedup"]) > 0
        assert float(ours["difference"]) < 2e-2
        assert published["attention"] == "_scaled_dot_product_flash_attention_for_cpu"
        # The compiler recognises attention in float32 products, not in those of narrowed tensors.
        plain = compiled and ours["precision"] == "bf16"
        assert ours["attention"] == ("matrix products" if plain else published["attention"])


def test_attention(tmp_path: Path) -> None:
    rows = run("attention", f"out={tmp_path / 'a.csv'}", "rounds=1", "cases=tiny")
    assert {"attend", "flash", "plain", "dense window"} <= {row["attention"] for row in rows}
    for row in rows:
        assert 0 < float(row["forward_ms"]) < float(row["both_ms"])
        assert row["commit"]


@pytest.mark.slow
def test_fusion(tmp_path: Path) -> None:
    rows = run("fusion", f"out={tmp_path / 'f.csv'}", "rounds=1", "batch_size=2", "blocks=1")
    assert [row["by_compiler"] for row in rows][:2] == ["", "qk_norm_rope"]
    assert rows[-1]["by_compiler"] == "all"
    assert len({row["loss"] for row in rows}) == 1
    with pytest.raises(AssertionError, match="is no transformer's; known: demo"):
        run("fusion", f"out={tmp_path / 'f.csv'}", "case=autoencoder")


def test_inference(tmp_path: Path) -> None:
    words = ["cases=demo_surrogate", "steps=1", "rounds=1", "precision=bf16"]
    (row,) = run("inference", f"out={tmp_path / 'i.csv'}", *words)
    assert (row["precision"], row["compiled"], row["members"]) == ("bf16", "False", "1")
    total = float(row["generation_ms"]) + float(row["decoding_ms"])
    assert float(row["ms_per_state"]) == pytest.approx(total, rel=1e-2)
    assert row["commit"]


@pytest.mark.usefixtures("traced_only")
def test_the_published_recipe_is_one_graph() -> None:
    """The baseline is not held up by how it is made: forward and backward of an autoencoder."""
    words = ("task=autoencoder", "ae=dcae_f8c16")
    case = replace(CASES["autoencoder"], words=words, shape=(5, 1, 32, 32), batch=2)
    side = Side(case, make_model(case, ""), ours=False)
    assert side.step(make_batch(case, torch.device("cpu"))).isfinite()
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
