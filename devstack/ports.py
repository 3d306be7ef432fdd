"""Chooses the loopback ports that servers listen on."""

import random
import socket
import time
from collections.abc import Collection
from pathlib import Path

from devstack.errors import DevstackError

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 20_000
_RELEASE_SECONDS = 3.0
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of the previous run in TIME_WAIT do not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def wait_free(port: int) -> bool:
    """Wait up to 3 s until a server could listen on this loopback port; return whether it could.

    A killed program counts as ended when its first thread has, while its last thread may still hold the sockets.
    """
    deadline = time.monotonic() + _RELEASE_SECONDS
    while not is_free(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def free_port(taken: Collection[int] = ()) -> int:
    """Return a free loopback port that is not in ``taken``.

    The port is below the kernel's ephemeral range when there is room. The kernel could assign a port of that range to
    an outgoing connection while its server is down, and a restart would find it taken; a client that retries a dead
    server there can even connect to itself.

    Raises DevstackError if no free port was found.
    """
    lowest_ephemeral = _lowest_ephemeral_port()
    if lowest_ephemeral - LOWEST_PORT < 1_000:
        return _kernel_chosen_port(taken)
    candidates = random.sample(range(LOWEST_PORT, lowest_ephemeral), 200)
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise DevstackError(
        f"no free port among 200 tried between {LOWEST_PORT} and {lowest_ephemeral}: stop some servers first"
    )


def _lowest_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _kernel_chosen_port(taken: Collection[int]) -> int:
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
    raise DevstackError("the kernel offers no free port: stop some servers first")
