"""Rate limit for log lines about events that may happen thousands of times a second."""

from __future__ import annotations

import threading
import time

_MOST_KEYS = 1000


class LogLimit:
    """Allows one line per key and ``seconds`` (default one) in this process, with the number of events since the last.

    Events after a line are counted with the next line.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        # By key: the time of the last line, and the number of events since.
        self._since: dict[object, tuple[float, int]] = {}

    def due(self, key: object, number: int = 1) -> int:
        """Count ``number`` more events of ``key``; returns how many to log now, 0 to log nothing."""
        now = time.monotonic()
        with self._lock:
            if key not in self._since and len(self._since) >= _MOST_KEYS:
                self._since.clear()
            logged_at, counted = self._since.get(key, (float("-inf"), 0))
            if now - logged_at < self._seconds:
                self._since[key] = (logged_at, counted + number)
                return 0
            self._since[key] = (now, 0)
            return counted + number
