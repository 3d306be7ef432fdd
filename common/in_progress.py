"""Load shedding: how many calls may be in progress, so that the last of them is answered in time."""

from __future__ import annotations

import time
from collections.abc import Callable

# Calls in progress that are always allowed: a burst when nothing was in progress has no rate yet.
LEAST = 1_100
_WAIT_SECONDS = 0.5
_WINDOW_SECONDS = 0.25


class InProgress:
    """Counts the calls in progress, and measures how many are answered a second."""

    def __init__(
        self, *, least: int = LEAST, seconds: float = _WAIT_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Allow as many calls as are answered in ``seconds``, which the last of them waits, but at least ``least``."""
        self._least = least
        self._seconds = seconds
        self._clock = clock
        self._count = 0
        self._answered = 0
        self._window_began = clock()
        self._limit = least

    def begin(self) -> bool:
        """Count a call; False if it must be refused, since too many are in progress."""
        if self._count >= self._limit:
            return False
        self._count += 1
        return True

    def end(self, *, is_answered: bool = True) -> None:
        """Count a call that has ended; only answered calls count for the rate."""
        self._count -= 1
        self._answered += is_answered
        elapsed = self._clock() - self._window_began
        if elapsed >= _WINDOW_SECONDS:
            rate = self._answered / elapsed
            self._limit = max(self._least, round(rate * self._seconds))
            self._answered, self._window_began = 0, self._clock()
