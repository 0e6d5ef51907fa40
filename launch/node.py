"""The supervisor of the ranks of one node, around `deepspeed`.

    python -m launch.node --ranks N --logs FOLDER -- key=value …

Slurm starts one per node (`srun --ntasks-per-node=1`). DeepSpeed's launcher alone would die of a
forwarded SIGUSR1 and orphan its ranks, and report success when one of its own processes is killed.
This process forwards signals to the ranks, waits for all of them and leaves no process behind. It
exits with

  0    all ranks of this node finished
  2    every rank found a mistake in the configuration or the data
  75   asked to stop and saved (`lola_ds.train.stop.EXIT_STOPPED`)
  79   a rank failed, was lost or never started

`srun` reports the highest status of all nodes, so a lost rank on any node counts most.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

from launch.attempt_log import meeting_point
from launch.rank import GPUS, LOGS
from launch.supervisor import (
    EXIT_LOST,
    EXIT_MISTAKE,
    PEERS_SECONDS,
    SOCKET,
    RankState,
    Supervisor,
)
from lola_ds.log import log_to_stderr, logger
from lola_ds.train.stop import EXIT_STOPPED

__all__ = ["Node", "deepspeed_command", "node_status"]

MASTER = "LOLA_MASTER"
"""The environment variable with `address:port` of the first node."""

FAILURE_SECONDS = 3.0
"""How long the other ranks may take to write their own errors after one has failed."""
GRACE_SECONDS = 25.0
"""How long the ranks may take to save after SIGTERM; Slurm sends SIGKILL after 30 seconds."""
LAUNCHER_SECONDS = 10.0
"""How long DeepSpeed's launcher may take to notice that all its ranks are done."""

_URGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, *_URGENT)


def main(argv: Sequence[str]) -> None:
    """Runs the ranks of this node and exits with their common status."""
    parser = argparse.ArgumentParser(prog="launch.node", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this node")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the ranks' logs")
    parser.add_argument("overrides", nargs="+", help="overrides of lola-ds train")
    args = parser.parse_args(argv)
    log_to_stderr()
    # `srun` signals all nodes when one has failed. The status of this node must not change then.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(Node(args.ranks, args.logs).run(args.overrides))


class Node:
    """The ranks of this node.

    Arguments:
        ranks: The number of ranks per node.
        logs: The folder of their logs.
    """

    def __init__(self, ranks: int, logs: Path) -> None:
        self.expected = ranks
        self.logs = logs
        self.supervisor = Supervisor()
        self.forwarded: signal.Signals | None = None
        self.deadline = float("inf")

    def run(self, overrides: Sequence[str]) -> int:
        """Starts `deepspeed`, waits for the ranks and cleans up; returns the status of the node."""
        _adopt_orphans()
        temporary = tempfile.TemporaryDirectory(prefix="lola-")
        with closing(self.supervisor), temporary as folder, self._signals():
            launcher = subprocess.Popen(
                deepspeed_command(Path(folder), self.expected, overrides),
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_ignore_signals,
            )
            try:
                self._wait(launcher)
            finally:
                _kill_group(launcher)
            code = node_status(self.supervisor.ranks.values(), self.expected)
            if code == EXIT_MISTAKE and _nodes() > 1:
                self._wait_for_other_nodes()
        if code == EXIT_LOST:
            self._explain(launcher.returncode)
        return code

    def _environment(self) -> dict[str, str]:
        added = {SOCKET: self.supervisor.name, LOGS: str(self.logs.absolute())}
        if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
            added[GPUS] = gpus
        return os.environ | added

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Forwards signals to the ranks, and also to ranks that connect later."""
        before = {number: signal.signal(number, self._request_stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request_stop(self, number: int, _frame: object) -> None:
        """Asks the ranks to stop. SIGTERM sets a deadline; a second Ctrl-C ends them at once."""
        urgent = number in _URGENT
        if urgent:
            again = number == signal.SIGINT and self.deadline < float("inf")
            self.deadline = min(self.deadline, time.monotonic() + (0 if again else GRACE_SECONDS))
        self.forwarded = signal.SIGTERM if urgent else signal.Signals(number)
        for state in list(self.supervisor.ranks.values()):
            _forward(state, self.forwarded)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> None:
        """Waits until all ranks are done, or until waiting for the rest has become pointless."""
        failed_at = done_at = float("inf")
        while launcher.poll() is None:
            for state in self.supervisor.poll(0.2):
                if self.forwarded is not None:
                    _forward(state, self.forwarded)
            now, ranks = time.monotonic(), self.supervisor.ranks.values()
            failures = {s.code for s in ranks if s.failed}
            if failures:
                failed_at = min(failed_at, now)
            if len(ranks) == self.expected and not any(s.running for s in ranks):
                done_at = min(done_at, now)
            mistaken = failures == {EXIT_MISTAKE}  # these ranks wait for this process to end them
            if mistaken:
                peers, launchers = PEERS_SECONDS, FAILURE_SECONDS
            else:
                peers, launchers = FAILURE_SECONDS, LAUNCHER_SECONDS
            if now > min(failed_at + peers, done_at + launchers, self.deadline):
                return
        for _ in range(10):  # messages that are still in the sockets
            self.supervisor.poll(0.05)

    def _wait_for_other_nodes(self) -> None:
        """Lets the other nodes end by themselves; `srun` ends them once this one has failed."""
        end = time.monotonic() + PEERS_SECONDS
        while self.forwarded is None and time.monotonic() < end:
            time.sleep(0.2)

    def _explain(self, launcher_code: int | None) -> None:
        """Logs which ranks failed, with the end of their logs."""
        ranks = self.supervisor.ranks.values()
        for state in sorted(ranks, key=lambda s: s.rank):
            if state.failed:
                what = "was lost (killed?)" if state.lost else f"failed with status {state.code}"
                path = self.logs / f"rank_{state.rank:05d}.log"
                logger.warning(f"rank {state.rank} {what}; its log {path} ends with\n{_tail(path)}")
        if len(ranks) < self.expected:
            logger.warning(
                f"{self.expected - len(ranks)} of {self.expected} ranks never started "
                f"(deepspeed exited with {launcher_code})"
            )
        if time.monotonic() > self.deadline:
            logger.warning("the ranks did not stop in time")


def node_status(ranks: Collection[RankState], expected: int) -> int:
    """The status of a node, given the states of its ranks and their expected number."""
    codes = {EXIT_LOST if state.code is None else state.code for state in ranks}
    if len(ranks) < expected or not codes <= {0, EXIT_MISTAKE, EXIT_STOPPED}:
        return EXIT_LOST
    return codes.pop() if len(codes) == 1 else EXIT_LOST


def deepspeed_command(folder: Path, ranks: int, overrides: Sequence[str]) -> list[str]:
    """The command that starts `deepspeed` on this node.

    DeepSpeed reads the number of nodes from a host file only. Its host names are not resolved,
    since nothing is started remotely.

    Arguments:
        folder: The folder for the host file.
        ranks: The number of ranks per node.
        overrides: The overrides of the training.
    """
    hosts = folder / "hostfile"
    hosts.write_text("".join(f"node{i} slots={ranks}\n" for i in range(_nodes())))
    address, _, port = (os.environ.get(MASTER) or meeting_point(None)).rpartition(":")
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return [
        shutil.which("deepspeed", path=beside) or "deepspeed",
        f"--hostfile={hosts}",
        "--no_ssh",
        f"--node_rank={os.environ.get('SLURM_NODEID', '0')}",
        f"--master_addr={address}",
        f"--master_port={port}",
        "--log_level=error",
        "--module",
        "launch.rank",
        *overrides,
    ]


def _nodes() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))


def _forward(state: RankState, number: signal.Signals) -> None:
    if state.running:
        with suppress(ProcessLookupError):  # the closed connection will show that
            os.kill(state.pid, number)


def _adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _ignore_signals() -> None:
    """Makes DeepSpeed's launcher ignore the signals that Slurm sends to every process of a step."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _kill_group(launcher: subprocess.Popen[bytes]) -> None:
    """Kills the launcher and everything that it or its ranks have started."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=5)


def _tail(path: Path, lines: int = 15) -> str:
    try:
        text = path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text)


if __name__ == "__main__":
    main(sys.argv[1:])
