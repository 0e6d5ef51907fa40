"""One rank under DeepSpeed's launcher: `python -m launch.rank --local_rank=0 key=value …`.

Runs `lola-ds train` in this process and writes its output to its own log. The process ends with its
supervisor (`launch.node`) and with the launcher that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from launch.supervisor import SupervisedRank
from lola_ds.cli.common import exit_at_once

__all__ = ["GPUS", "LOGS", "main"]

LOGS = "LOLA_LOGS"
"""The environment variable with the folder of the ranks' logs."""
GPUS = "LOLA_GPUS"
"""The environment variable with CUDA_VISIBLE_DEVICES as the scheduler set it."""


def main(argv: Sequence[str]) -> None:
    """Trains, sends the exit status to the supervisor and exits with it."""
    rank = int(os.environ["RANK"])
    # Signals stay pending until the training waits for them; no other thread may receive them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until there is something to save
    _die_with_parent()
    supervised = SupervisedRank(rank)
    copy = _write_log(Path(os.environ[LOGS]) / f"rank_{rank:05d}.log", shown=rank == 0)
    if GPUS in os.environ:  # DeepSpeed's launcher counts from GPU 0, whichever were allocated
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.pop(GPUS)
    code = _train(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    supervised.finish(code)
    if copy is not None:
        copy.returncode = 0  # it ends after this process, with the end of its input
    exit_at_once(lambda: sys.exit(code))


def _train(argv: Sequence[str]) -> int:
    from lola_ds.cli import train
    from lola_ds.cli.common import run_command

    try:
        run_command(train.main, argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _die_with_parent() -> None:
    """Lets the kernel send SIGKILL to this process when DeepSpeed's launcher dies."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


def _write_log(path: Path, shown: bool) -> subprocess.Popen[bytes] | None:
    """Appends standard output and error to `path`, and also shows them if `shown`.

    Returns:
        The process that writes both copies, if there are two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    copy = None
    with path.open("ab", buffering=0) as log:
        job = os.environ.get("SLURM_JOB_ID", "local")
        where = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"\n=== {now} job {job}, node {where}, pid {os.getpid()}\n".encode())
        target = log.fileno()
        if shown:
            # The copy ignores the signals that end the rank, and ends when its input ends.
            copy = subprocess.Popen(
                ["tee", "-a", str(path)],
                stdin=subprocess.PIPE,
                preexec_fn=lambda: [signal.signal(n, signal.SIG_IGN) for n in _SIGNALS],
            )
            assert copy.stdin is not None
            target = copy.stdin.fileno()
        for stream in (1, 2):
            os.dup2(target, stream)
    return copy


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


if __name__ == "__main__":
    main(sys.argv[1:])
