"""Log lines about what may happen thousands of times a second."""

from __future__ import annotations

import threading
import time

_MOST_KEYS = 1000


class LogLimit:
    """At most one line a second per key and process, with the number of everything since the line before.

    What comes after the last line is counted with the next one.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        # By key the time of the last line, and what has come since.
        self._since: dict[object, tuple[float, int]] = {}

    def due(self, key: object, number: int = 1) -> int:
        """Count ``number`` more; returns how many to report now, 0 for none."""
        now = time.monotonic()
        with self._lock:
            if key not in self._since and len(self._since) >= _MOST_KEYS:
                self._since.clear()
            written_at, before = self._since.get(key, (float("-inf"), 0))
            if now - written_at < self._seconds:
                self._since[key] = (written_at, before + number)
                return 0
            self._since[key] = (now, 0)
            return before + number
