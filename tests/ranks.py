"""Starts several real ranks of a Python script or module on this machine (gloo)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_ranks(
    words: Sequence[str], world_size: int, env: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts `python <words>` once per rank with the launcher's environment variables."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            **(env or {}),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | {k: str(v) for k, v in variables.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
        )
    return processes


def run_ranks(
    words: Sequence[str], world_size: int, env: dict[str, str] | None = None, timeout: float = 240
) -> list[str]:
    """Runs all ranks to their end; returns their output, and fails if one failed."""
    processes = start_ranks(words, world_size, env)
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs)):
        assert process.returncode == 0, f"rank {rank} exited {process.returncode}:\n{output}"
    return outputs
