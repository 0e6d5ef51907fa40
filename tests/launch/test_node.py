"""The wrapper: what it calls success, what it forwards, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ranks import ROOT

FAKES = str(Path(__file__).with_name("fakes.py"))


class Wrapper:
    """A running wrapper around fake ranks, and every process it ever started."""

    def __init__(self, folder: Path, *behaviours: str) -> None:
        self.size = len(behaviours)
        self.process = subprocess.Popen(
            [sys.executable, FAKES, "node", str(folder), *behaviours],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self.seen: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= {child.pid: child for child in found}
        return found

    def wait_for_ranks(self) -> list[psutil.Process]:
        """Waits until every rank runs its thread, and thus has its signal handlers."""
        deadline = time.monotonic() + 30
        while True:
            ranks = [p for p in self.family() if "rank" in p.cmdline() and p.num_threads() == 3]
            if len(ranks) == self.size:
                return sorted(ranks, key=lambda p: p.environ()["RANK"])
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self, timeout: float = 20) -> tuple[int, str]:
        _, output = self.process.communicate(timeout=timeout)
        psutil.wait_procs(list(self.seen.values()), timeout=3)
        assert not [p for p in self.seen.values() if p.is_running()], "processes are left"
        return self.process.returncode, output

    def kill(self) -> None:
        for process in [*self.seen.values(), psutil.Process(self.process.pid)]:
            if process.is_running():
                process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Wrapper] = []

    def start(*behaviours: str) -> Wrapper:
        started.append(Wrapper(tmp_path, *behaviours))
        return started[-1]

    yield start
    for wrapper in started:
        if wrapper.process.poll() is None:
            wrapper.kill()


@pytest.mark.parametrize(
    ("behaviours", "code", "said"),
    [
        (["finish", "finish"], 0, ""),
        (["mistake", "mistake"], 2, ""),
        (["finish", "fail"], 79, "rank 1 failed with status 1"),
        (["hang", "mistake"], 79, "rank 1 failed with status 2"),
        (["finish", "absent"], 79, "1 of 2 ranks never started"),
        (["absent"], 79, "1 of 1 ranks never started"),
    ],
)
def test_status_of_a_node(start, behaviours: list[str], code: int, said: str) -> None:
    found, output = start(*behaviours).finish()
    assert found == code, output
    assert said in output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank(start, number: signal.Signals) -> None:
    wrapper = start("work", "work", "orphan")
    wrapper.wait_for_ranks()
    wrapper.family()
    wrapper.process.send_signal(number)
    assert wrapper.finish()[0] == 75


def test_a_mistake_waits_for_the_other_nodes(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun` ends all nodes when one has failed, and would report that they were killed."""
    seconds = []
    for nodes in ("1", "2"):
        monkeypatch.setenv("SLURM_STEP_NUM_NODES", nodes)
        begin = time.monotonic()
        assert start("mistake", "mistake").finish()[0] == 2
        seconds.append(time.monotonic() - begin)
    assert seconds[1] > 2.0
    wrapper = start("work", "work")
    wrapper.wait_for_ranks()
    wrapper.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert wrapper.finish()[0] == 75
    assert time.monotonic() - begin < 2.0


def test_the_status_of_a_node_is_final(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun` ends the other nodes while they end by themselves."""
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    wrapper = start("mistake", "mistake")
    while not wrapper.family():
        time.sleep(0.01)
    while wrapper.family():
        time.sleep(0.01)
    while wrapper.process.poll() is None:
        wrapper.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert wrapper.finish()[0] == 2


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_step_wide_signal_spares_the_launcher(start, number: signal.Signals) -> None:
    """Slurm sends its warning, and the SIGTERM of `scancel`, to every process of the step."""
    wrapper = start("work", "work")
    wrapper.wait_for_ranks()
    for process in [psutil.Process(wrapper.process.pid), *wrapper.family()]:
        process.send_signal(number)
    assert wrapper.finish()[0] == 75


def test_deaf_ranks_are_killed_in_time(start) -> None:
    wrapper = start("hang", "work")
    wrapper.wait_for_ranks()
    wrapper.process.send_signal(signal.SIGTERM)
    code, output = wrapper.finish()
    assert code == 79
    assert "did not stop in time" in output


def test_killed_rank_fails_the_node(start) -> None:
    wrapper = start("work", "hang", "orphan")
    wrapper.wait_for_ranks()[1].kill()
    code, output = wrapper.finish()
    assert code == 79
    assert "rank 1 was lost" in output


def test_killed_launcher_fails_the_node(start) -> None:
    wrapper = start("work", "orphan")
    wrapper.wait_for_ranks()
    next(p for p in wrapper.family() if "launcher" in p.cmdline()).kill()
    code, output = wrapper.finish()
    assert code == 79
    assert "rank 0 was lost" in output


def test_killed_wrapper_takes_all_with_it(start) -> None:
    wrapper = start("work", "hang")
    wrapper.wait_for_ranks()
    wrapper.process.kill()
    assert wrapper.finish()[0] == -signal.SIGKILL
