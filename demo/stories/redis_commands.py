"""Observes Redis: every command that the service sends, those inside its scripts too."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import redis
from django.conf import settings

from demo.stories.topics import OBSERVE_SECONDS
from devstack import wait_until

_END = "demo-observer-end"


class RedisObserver:
    """Collects the commands that Redis executes, by MONITOR. Use it as a context manager."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self._client = redis.Redis.from_url(settings.REDIS_URL)
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="redis-observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(self._listening.is_set, OBSERVE_SECONDS, "Redis does not answer MONITOR")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.echo(_END)
        self._thread.join(OBSERVE_SECONDS)
        self._client.close()

    def wait_for(self, *words: str) -> str:
        """Wait for a command that has all of ``words`` and return it. Raises TimeoutError after 90 s."""

        def found() -> list[str]:
            return [command for command in list(self.commands) if all(word in command for word in words)]

        wait_until(found, OBSERVE_SECONDS, f"Redis does not execute {' '.join(words)}", 0.02)
        return found()[-1]

    def _listen(self) -> None:
        with self._client.monitor() as monitor:  # type: ignore[no-untyped-call]
            self._listening.set()
            for item in monitor.listen():
                command: dict[str, Any] = item
                if _END in command["command"]:
                    break
                self.commands.append(command["command"])
