"""Real ranks as forks of a server that has imported everything: started in a second, not in eight.

The server is multiprocessing's own; it is a single thread and forks before anything is set up, so a
fork differs from a process of its own in the time its imports take only.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from ranks import free_port

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["deepspeed", "lola_ds.build", "lola_ds.cli.train", "hydra"])


class ForkedRanks:
    """The ranks of one attempt; none outlives the `with` block around them.

    Arguments:
        module: what they run: its `main(words)`, as `lola-ds` runs commands.
        words: the arguments of `main`.
        world_size: how many.
        folder: where `rank_N.log` goes.
    """

    def __init__(self, module: str, words: Sequence[str], world_size: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        port = free_port()
        self.logs = [folder / f"rank_{rank}.log" for rank in range(world_size)]
        self.processes: list[BaseProcess] = []
        for rank, log in enumerate(self.logs):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            texts = {key: str(value) for key, value in variables.items()}
            process = _CONTEXT.Process(target=_run, args=(module, list(words), texts, str(log)))
            process.start()
            self.processes.append(process)

    def __enter__(self) -> ForkedRanks:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(0)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Sends a signal to one rank, if it is still there."""
        process = self.processes[rank]
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)

    def wait(self, seconds: float) -> list[int | None]:
        """Waits so long for all to end, kills the rest; exit codes, -N for a signal."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for rank, process in enumerate(self.processes):
            self.signal(rank, signal.SIGKILL)
            process.join()
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Waits until something holds; fails if that takes too long or a rank ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.alive, [log.read_text() for log in self.logs]
            assert time.monotonic() < deadline, f"nothing for {seconds} seconds"
            time.sleep(0.0005)

    def finish(self, seconds: float = 1500) -> list[str]:
        """Waits for the end of all; returns their output, and fails if one failed."""
        codes = self.wait(seconds)
        outputs = [log.read_text() for log in self.logs]
        assert codes == [0] * len(codes), (codes, outputs)
        return outputs

    @property
    def alive(self) -> bool:
        """Whether all are still there."""
        return all(process.is_alive() for process in self.processes)


def _run(module: str, words: list[str], variables: dict[str, str], log: str) -> None:
    os.environ.update(variables)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    from lola_ds.cli.common import exit_at_once, run_command

    exit_at_once(lambda: run_command(importlib.import_module(module).main, words))
