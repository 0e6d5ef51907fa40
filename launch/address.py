"""An address of this machine and a free port, where the ranks of a job meet."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

__all__ = ["find_address", "find_port"]

PORTS = range(12000, 32000)  # below the ports that the kernel hands out


def find_address(interface: str | None = None) -> str:
    """Finds an IPv4 address at which the other nodes reach this one.

    Arguments:
        interface: The network interface. By default, the address of the node's name, or else that
            of the default route.

    Raises:
        ValueError: The interface does not exist or has no address.
    """
    if interface is not None:
        return _interface_address(interface)
    for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname()):
        try:
            address = socket.gethostbyname(name) if name else "127."
        except OSError:
            continue
        if not address.startswith("127."):
            return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing: the kernel only chooses a route
        except OSError:
            return "127.0.0.1"
        return sock.getsockname()[0]


def find_port(job: int = 0) -> int:
    """Finds a free port. The search starts at a number that depends on the job, to avoid races."""
    start = job * 61 % len(PORTS) if job else os.getpid() * 61 % len(PORTS)
    for i in range(len(PORTS)):
        port = PORTS[(start + i) % len(PORTS)]
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of {PORTS.start} to {PORTS.stop} is free")


def _interface_address(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(sock.fileno(), 0x8915, request)  # SIOCGIFADDR
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise ValueError(
                f"cluster.interface={interface} has no IPv4 address here; interfaces: {known}"
            ) from error
    return socket.inet_ntoa(answer[20:24])
