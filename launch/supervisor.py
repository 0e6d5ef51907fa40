"""The lifeline between a node's wrapper and its ranks: a Unix socket in the abstract namespace.

A rank connects when it starts, says who it is, and says its exit status when it ends. Whichever
side dies, the kernel closes the connection at once, whatever killed it: a connection that closes
without a status is a lost rank, and a rank whose wrapper is gone has no reason to go on.
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

NAME = "LOLA_LIFELINE"
"""Environment variable with the socket's name."""
EXIT_MISTAKE = 2
EXIT_LOST = 79
COMPANY = 20.0
"""Seconds for the other ranks and nodes to find the mistake that one of them has found."""


@dataclass
class RankState:
    """What the wrapper knows of a rank: it runs, or it ended with `code`, or it is `lost`."""

    rank: int
    pid: int
    code: int | None = None
    lost: bool = False

    @property
    def running(self) -> bool:
        return self.code is None and not self.lost

    @property
    def failed(self) -> bool:
        return self.lost or self.code not in (None, 0, EXIT_STOPPED)


class Lifeline:
    """The wrapper's end.

    Arguments:
        ranks: by global number; filled as they connect.
    """

    def __init__(self) -> None:
        self.name = f"lola-{secrets.token_hex(16)}"
        self.ranks: dict[int, RankState] = {}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"\0{self.name}")
        self._server.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    def hear(self, seconds: float) -> list[RankState]:
        """Waits at most `seconds` for news; returns the ranks that connected just now."""
        new = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            elif state := self._read(key):
                new.append(state)
        return new

    def close(self) -> None:
        """Cuts the line to every rank, which ends those that still run."""
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
        """Reads what a rank said; returns its state if this was its first line."""
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


class RankEnd:
    """The rank's end. Constructed first thing; the rank's group dies with the wrapper."""

    def __init__(self, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("\0" + os.environ.pop(NAME))
        self._say({"rank": rank, "pid": os.getpid()})
        Thread(target=self._watch, name="lifeline", daemon=True).start()

    def finish(self, code: int) -> None:
        """Says the exit status.

        After a mistake, waits for the wrapper to end this rank: if it left now, DeepSpeed's
        launcher would end the others, which have not all come as far.
        """
        self._say({"code": code})
        if code == EXIT_MISTAKE:
            time.sleep(2 * COMPANY)

    def _say(self, line: dict[str, int]) -> None:
        self._socket.sendall(json.dumps(line).encode() + b"\n")

    def _watch(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # the wrapper never speaks: this returns when it is gone
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _peer_user(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", packed)[1]
