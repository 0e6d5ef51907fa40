"""Asking a training to stop: finish the step, save a checkpoint, exit with `EXIT_STOPPED`.

Schedulers announce the end of a job by a signal, which may reach some ranks a step before others.
Each rank's request therefore travels in the sum that every step takes over all ranks anyway, so
that all of them stop after the same step.
"""

from __future__ import annotations

import signal
from threading import Thread

EXIT_STOPPED = 75
"""Exit status of a training that saved and stopped on request (EX_TEMPFAIL: start it again)."""

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether this process was asked to stop; true once `signal` is named."""

    def __init__(self) -> None:
        self.signal = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    def listen(self) -> None:
        """Notes SIGTERM, SIGUSR1 and SIGUSR2 from now on instead of dying of them.

        Slurm sends its warning to every process of a job step. The user signals are therefore
        blocked, which processes started later inherit (a handler they would not), and a thread
        waits for them: a rank's child processes live on until it has saved. Main thread only,
        before other threads start.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _WARNINGS)
        signal.signal(signal.SIGTERM, self._note)
        Thread(target=self._wait, name="stop request", daemon=True).start()

    def _wait(self) -> None:
        while True:
            self._note(signal.sigwait(_WARNINGS))

    def _note(self, number: int, _frame: object = None) -> None:
        self.signal = signal.Signals(number).name
