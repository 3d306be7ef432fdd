"""The heartbeat row of a process: when it was last alive, and when its loop last made a pass."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from django.db import connection

from common.processes.lifecycle import first_line

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
_END_SECONDS = 2.0

_BEAT = """
    INSERT INTO kafka_bridge_processheartbeat (id, role, host, pid, started_at, seen_at, turned_at)
    VALUES (%(id)s, %(role)s, %(host)s, %(pid)s, statement_timestamp(), statement_timestamp(),
            statement_timestamp() - %(idle)s * interval '1 second')
    ON CONFLICT (id) DO UPDATE SET seen_at = EXCLUDED.seen_at, turned_at = EXCLUDED.turned_at
"""
_FORGET = "DELETE FROM kafka_bridge_processheartbeat WHERE seen_at < statement_timestamp() - interval '1 day'"


class Heartbeat:
    """Writes the row every five seconds in its own thread, by the database's clock.

    Each loop of the process reports its passes through ``loop()``, so that a hanging loop shows in a living process.
    """

    def __init__(self, role: str) -> None:
        self._values: dict[str, Any] = {
            "id": uuid.uuid4(),
            "role": role,
            "host": socket.gethostname()[:200],
            "pid": os.getpid(),
        }
        self._ticked_at: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def loop(self) -> Callable[[], None]:
        """Register a loop; returns the function that it calls at each pass.

        The row holds the oldest last pass of all loops.
        """
        number = len(self._ticked_at)

        def tick() -> None:
            self._ticked_at[number] = time.monotonic()

        tick()
        return tick

    def start(self) -> None:
        """Start the thread, which runs until ``end``. Call it after any fork."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the thread; deletes the row if the database answers within two seconds."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def beat(self) -> None:
        """Write the row once. Raises what the database raises."""
        with connection.cursor() as cursor:
            now = time.monotonic()
            idle = now - min(self._ticked_at.values(), default=now)
            cursor.execute(_BEAT, {**self._values, "idle": idle})
            cursor.execute(_FORGET)

    def _run(self) -> None:
        try:
            while not self._ended.wait(BEAT_SECONDS if self._try(self.beat) else 1.0):
                pass
            self._try(self._remove)
        finally:
            connection.close()

    def _remove(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM kafka_bridge_processheartbeat WHERE id = %s", [self._values["id"]])

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:
            logger.warning("no heartbeat: %s", first_line(error))
            connection.close()
            return False
        return True
