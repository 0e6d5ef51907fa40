"""Real ranks of a Python script or module on this machine (gloo), started in a second.

Ranks are forks of a server that has imported everything, which takes a process five seconds. The
server is multiprocessing's own; it is a single thread and forks before anything is set up, so a
fork differs from `python WORD …` in the time its imports take only.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "hydra",
        "lola_ds.build.training",
        "lola_ds.estimate.trace",
        "deepspeed.runtime.zero.muon.muon_optimizer",
    ]  # the compiler, too
)
_SETTINGS = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Ranks:
    """The ranks of one attempt; none outlives the `with` block around them.

    Arguments:
        words: what `python` is given: a script or `-m` and a module, and its arguments.
        world_size: how many.
        env: variables of their environment, beside those of a launcher.
    """

    def __init__(
        self, words: Sequence[str], world_size: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = TemporaryDirectory(prefix="ranks_")
        self.logs = [Path(self.folder.name, str(rank)) for rank in range(world_size)]
        self.processes: list[BaseProcess] = []
        meet = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        for rank, log in enumerate(self.logs):
            variables = meet | {"RANK": rank, "LOCAL_RANK": rank} | _SETTINGS | dict(env or {})
            texts = os.environ | {key: str(value) for key, value in variables.items()}
            process = _CONTEXT.Process(target=_run, args=(list(words), texts, str(log)))
            with patch.dict(os.environ, _SETTINGS):  # the first one starts the server
                process.start()
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(0)
        self.folder.cleanup()

    @property
    def alive(self) -> bool:
        """Whether all are still there."""
        return all(process.is_alive() for process in self.processes)

    @property
    def outputs(self) -> list[str]:
        """What each has said so far."""
        return [log.read_text() if log.is_file() else "" for log in self.logs]

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
            assert self.alive, self.outputs
            assert time.monotonic() < deadline, f"nothing for {seconds} seconds"
            time.sleep(0.0005)

    def finish(self, seconds: float = 1500) -> list[str]:
        """Waits for the end of all; returns their output, and fails if one failed."""
        codes = self.wait(seconds)
        for rank, (code, output) in enumerate(zip(codes, self.outputs)):
            assert code == 0, f"rank {rank} exited {code}:\n{output}"
        return self.outputs


def run_ranks(
    words: Sequence[str],
    world_size: int,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> list[str]:
    """Runs all ranks to their end; returns their output, and fails if one failed."""
    with Ranks(words, world_size, env) as ranks:
        return ranks.finish(timeout)


def _run(words: list[str], variables: dict[str, str], log: str) -> None:
    """As `python WORD …` would, from the root of the project, with standard output in `log`."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    sys.argv = words[1:] if words[0] == "-m" else list(words)
    sys.path[:0] = [str(Path(words[0]).parent), str(ROOT), str(ROOT / "tests")]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
