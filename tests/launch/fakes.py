"""Stand-ins for `deepspeed` and the training: the wrapper's part of the truth, without the imports.

    python fakes.py node FOLDER BEHAVIOUR …       the real wrapper, around
    python fakes.py launcher N BEHAVIOUR …        what `deepspeed` would be, which starts
    python fakes.py rank BEHAVIOUR                what a rank would be

Behaviours of a rank: `finish`, `fail`, `mistake`, `hang` (deaf to everything), `work` (until it is
asked to stop), `orphan` (leaves a process in a session of its own, then works), `absent`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch import node
from launch.rank import _die_with_parent
from launch.supervisor import SupervisedRank
from lola_ds.train.stop import EXIT_STOPPED, StopRequest

CODES = {"finish": 0, "fail": 1, "mistake": 2}


def fake_command(folder: Path, ranks: int, words: list[str]) -> list[str]:
    return [sys.executable, __file__, "launcher", *words]


def run_launcher(behaviours: list[str]) -> None:
    ranks = []
    for rank, behaviour in enumerate(behaviours):
        env = os.environ | {"RANK": str(rank)}
        ranks.append(subprocess.Popen([sys.executable, __file__, "rank", behaviour], env=env))
    while running := [rank for rank in ranks if rank.poll() is None]:
        if any(rank.returncode for rank in ranks):
            for rank in running:
                rank.terminate()
        time.sleep(0.1)
    # … and says success, whatever became of them: the wrapper has to know better.


def run_rank(behaviour: str) -> None:
    _die_with_parent()
    if behaviour == "absent":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end = SupervisedRank(int(os.environ["RANK"]))
    stop = StopRequest()
    stop.listen()
    if behaviour == "orphan":
        subprocess.Popen(["sleep", "1234"], start_new_session=True)
    if behaviour == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while behaviour not in CODES:
        time.sleep(0.02)
        if stop and behaviour != "hang":
            time.sleep(0.5)  # saves
            behaviour = "stopped"
            break
    code = CODES.get(behaviour, EXIT_STOPPED)
    end.finish(code)
    raise SystemExit(code)


def main(role: str, *words: str) -> None:
    if role == "node":
        folder, *behaviours = words
        node.deepspeed_command = fake_command  # type: ignore[assignment]
        node.GRACE_SECONDS = 1.0
        node.FAILURE_SECONDS = 0.3
        node.PEERS_SECONDS = 2.0
        count = str(len(behaviours))
        node.main(["--ranks", count, "--logs", folder, "--", *behaviours])
    elif role == "launcher":
        run_launcher(list(words))
    else:
        run_rank(words[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
