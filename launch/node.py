"""The wrapper around `deepspeed` on one node.

    python -m launch.node --ranks N --logs FOLDER -- key=value …

Slurm starts one per node (`srun --ntasks-per-node=1`); without Slurm it starts the only node.
DeepSpeed's launcher alone would die of a forwarded SIGUSR1 and orphan its ranks, and call the job a
success when one of its own processes is killed. So this wrapper forwards signals to the ranks,
waits for them, counts them, and leaves no process behind. It exits with

  0    all ranks of this node finished
  2    a mistake of the user's, in every rank
  75   asked to stop, and saved (`lola_ds.train.stop.EXIT_STOPPED`)
  79   a rank failed, was lost or never came

`srun` reports the highest status of all nodes, so a loss anywhere outweighs the rest.
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
from launch.supervisor import COMPANY, EXIT_LOST, EXIT_MISTAKE, NAME, Lifeline, RankState
from lola_ds.log import log_to_stderr, logger
from lola_ds.train.stop import EXIT_STOPPED

MASTER = "LOLA_MASTER"
"""Environment variable with `address:port` of the first node."""

FAREWELL = 3.0  # seconds for the other ranks to say their own error once one has failed
GRACE = 25.0  # seconds after SIGTERM; Slurm's SIGKILL follows it after 30
PATIENCE = 10.0  # seconds for DeepSpeed's launcher to notice that all its ranks are done

_URGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, *_URGENT)


def main(argv: Sequence[str]) -> None:
    """Runs this node's ranks and exits with the status of them all."""
    parser = argparse.ArgumentParser(prog="launch.node", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this node")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the ranks' logs")
    parser.add_argument("words", nargs="+", help="for lola-ds train")
    args = parser.parse_args(argv)
    log_to_stderr()
    # `srun` ends all nodes when one has failed; a verdict that is being brought in comes first.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(Node(args.ranks, args.logs).run(args.words))


class Node:
    """This node's ranks.

    Arguments:
        ranks: how many on this node (and every other).
        logs: folder of their logs.
    """

    def __init__(self, ranks: int, logs: Path) -> None:
        self.expected = ranks
        self.logs = logs
        self.lifeline = Lifeline()
        self.asked: signal.Signals | None = None
        self.deadline = float("inf")

    def run(self, words: Sequence[str]) -> int:
        """Starts `deepspeed`, waits, cleans up; returns the status to exit with."""
        _adopt_orphans()
        temporary = tempfile.TemporaryDirectory(prefix="lola-")
        with closing(self.lifeline), temporary as folder, self._signals():
            launcher = subprocess.Popen(
                deepspeed_command(Path(folder), self.expected, words),
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_spare_launcher,
            )
            try:
                self._wait(launcher)
            finally:
                _kill_group(launcher)
            code = verdict(self.lifeline.ranks.values(), self.expected)
            if code == EXIT_MISTAKE and _nodes() > 1:
                self._wait_for_company()
        if code == EXIT_LOST:
            self._explain(launcher.returncode)
        return code

    def _environment(self) -> dict[str, str]:
        added = {NAME: self.lifeline.name, LOGS: str(self.logs.absolute())}
        if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
            added[GPUS] = gpus
        return os.environ | added

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Forwards signals to the ranks, as they come and to those that come later."""
        before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        """Asks the ranks to stop. SIGTERM sets a deadline; a second Ctrl-C ends it at once."""
        urgent = number in _URGENT
        if urgent:
            again = number == signal.SIGINT and self.deadline < float("inf")
            self.deadline = min(self.deadline, time.monotonic() + (0 if again else GRACE))
        self.asked = signal.SIGTERM if urgent else signal.Signals(number)
        for state in list(self.lifeline.ranks.values()):
            _forward(state, self.asked)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> None:
        """Returns when all ranks are done, or when there is nothing left to wait for."""
        failed_at = done_at = float("inf")
        while launcher.poll() is None:
            for state in self.lifeline.hear(0.2):
                if self.asked is not None:
                    _forward(state, self.asked)
            now, ranks = time.monotonic(), self.lifeline.ranks.values()
            failures = {s.code for s in ranks if s.failed}
            if failures:
                failed_at = min(failed_at, now)
            if len(ranks) == self.expected and not any(s.running for s in ranks):
                done_at = min(done_at, now)
            mistaken = failures == {EXIT_MISTAKE}  # by ranks that stay until this process ends
            others, launchers = (COMPANY, FAREWELL) if mistaken else (FAREWELL, PATIENCE)
            if now > min(failed_at + others, done_at + launchers, self.deadline):
                return
        for _ in range(10):  # last words that were on their way
            self.lifeline.hear(0.05)

    def _wait_for_company(self) -> None:
        """Lets the other nodes end by themselves: `srun` ends them all when this one has failed."""
        end = time.monotonic() + COMPANY
        while self.asked is None and time.monotonic() < end:
            time.sleep(0.2)

    def _explain(self, launcher_code: int | None) -> None:
        """Says which ranks are to blame, with the end of their logs."""
        ranks = self.lifeline.ranks.values()
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


def verdict(ranks: Collection[RankState], expected: int) -> int:
    """The status of a node from the ends of its ranks."""
    codes = {EXIT_LOST if state.code is None else state.code for state in ranks}
    if len(ranks) < expected or not codes <= {0, EXIT_MISTAKE, EXIT_STOPPED}:
        return EXIT_LOST
    return codes.pop() if len(codes) == 1 else EXIT_LOST


def deepspeed_command(folder: Path, ranks: int, words: Sequence[str]) -> list[str]:
    """`deepspeed` for this node of the job.

    DeepSpeed learns the number of nodes from a host file only. Its names are never resolved, since
    nothing is started remotely.

    Arguments:
        folder: for the host file.
        ranks: on each node.
        words: for the training.
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
        *words,
    ]


def _nodes() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))


def _forward(state: RankState, number: signal.Signals) -> None:
    if state.running:
        with suppress(ProcessLookupError):  # its connection will tell
            os.kill(state.pid, number)


def _adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _spare_launcher() -> None:
    """Makes DeepSpeed's processes deaf to what Slurm sends to a whole step but means for ranks."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _kill_group(launcher: subprocess.Popen[bytes]) -> None:
    """Leaves nothing running: not the launcher, not what it or its ranks have started."""
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
