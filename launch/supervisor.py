"""Supervision of the ranks of a node through a Unix socket in the abstract namespace.

A rank connects when it starts, sends its number, and sends its exit status when it ends. If either
side dies, for whatever reason, the kernel closes the connection at once. A rank whose connection
closes without a status is lost; a rank whose supervisor is gone ends itself.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

from lola_ds.train.stop import EXIT_STOPPED

__all__ = [
    "EXIT_LOST",
    "EXIT_MISTAKE",
    "PEERS_SECONDS",
    "SOCKET",
    "RankState",
    "SupervisedRank",
    "Supervisor",
]

SOCKET = "LOLA_SUPERVISOR"
"""The environment variable with the name of the socket."""
EXIT_MISTAKE = 2
"""The status of a rank that found a mistake in the configuration or the data."""
EXIT_LOST = 79
"""The status of a node of which a rank failed or was lost."""
PEERS_SECONDS = 20.0
"""How long the other ranks and nodes may take to find the mistake that one of them found."""


@dataclass
class RankState:
    """The state of a rank: it runs, ended with the status `code`, or is `lost`."""

    rank: int
    pid: int
    code: int | None = None
    lost: bool = False

    @property
    def running(self) -> bool:
        """Whether the rank still runs."""
        return self.code is None and not self.lost

    @property
    def failed(self) -> bool:
        """Whether the rank was lost or ended with an error."""
        return self.lost or self.code not in (None, 0, EXIT_STOPPED)


class Supervisor:
    """The supervisor's side of the connections.

    Attributes:
        ranks: The states of the ranks that have connected, by global number.
    """

    def __init__(self) -> None:
        self.name = f"lola-{secrets.token_hex(16)}"
        self.ranks: dict[int, RankState] = {}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"\0{self.name}")
        self._server.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    def poll(self, seconds: float) -> list[RankState]:
        """Waits at most `seconds` for messages; returns the ranks that have newly connected."""
        new = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            elif state := self._read(key):
                new.append(state)
        return new

    def close(self) -> None:
        """Closes all connections, which ends the ranks that still run."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        if _peer_user(connection) == os.getuid():  # the abstract namespace has no permissions
            self._selector.register(connection, selectors.EVENT_READ, data=[b"", None])
        else:
            connection.close()

    def _read(self, key: selectors.SelectorKey) -> RankState | None:
        """Reads messages of a rank; returns its state if the first one was among them."""
        connection: Any = key.fileobj
        try:
            data = connection.recv(4096)
        except OSError:  # reset by a killed peer
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            state = key.data[1]
            if state is not None and state.code is None:
                state.lost = True
            return None
        *lines, key.data[0] = (key.data[0] + data).split(b"\n")
        new = None
        for line in map(json.loads, lines):
            if key.data[1] is None:
                new = key.data[1] = RankState(line["rank"], line["pid"])
                self.ranks[new.rank] = new
            else:
                key.data[1].code = line["code"]
        return new


class SupervisedRank:
    """The rank's side of the connection, made at its very start.

    The process group of the rank is killed when the supervisor is gone.
    """

    def __init__(self, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("\0" + os.environ.pop(SOCKET))
        self._send({"rank": rank, "pid": os.getpid()})
        Thread(target=self._watch, name="supervisor", daemon=True).start()

    def finish(self, code: int) -> None:
        """Sends the exit status.

        After a mistake, waits for the supervisor to end this rank. If the rank ended by itself,
        DeepSpeed's launcher would end the others before they have reported the mistake.
        """
        self._send({"code": code})
        if code == EXIT_MISTAKE:
            time.sleep(2 * PEERS_SECONDS)

    def _send(self, line: dict[str, int]) -> None:
        self._socket.sendall(json.dumps(line).encode() + b"\n")

    def _watch(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # the supervisor sends nothing: this returns when it is gone
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _peer_user(connection: socket.socket) -> int:
    """The user id of the process on the other side."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", packed)[1]
