"""Load shedding before any work: how many requests the event loop takes in, so that it answers all in time."""

from __future__ import annotations

import asyncio
from collections import deque

from common.in_progress import InProgress

# Requests that are always taken in: a burst when nothing was in progress has no rate yet. A thousand connections that
# each wait for their answer are not refused.
LEAST = 1_100
# While the loop is saturated an accepted request takes about that long, in four to five turns of the loop; a refused
# one waits for one turn.
_SECONDS = 0.25
_TICK_SECONDS = 0.01
# A request counts for so many ticks.
TICKS = 10


class Taken:
    """Requests that were taken in between two ticks and are not answered yet."""

    __slots__ = ("count", "is_recent")

    def __init__(self) -> None:
        self.count = 0
        self.is_recent = True


class LoopLoad:
    """Limits the requests in progress that the loop is busy with; used in one event loop.

    Those that wait for something else (a slow body, a locked row, the site) must not keep others out, so a request
    counts for ``TICKS`` ticks only. A loop that has fallen behind ticks once a turn: ticks are as slow as the steps of
    the requests, and a request that only waits for its turns keeps counting.
    """

    def __init__(self) -> None:
        self._in_progress = InProgress(least=LEAST, seconds=_SECONDS)
        self._recent = deque(Taken() for _ in range(TICKS))
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> Taken | None:
        """Count a request; None if it must be refused. Otherwise ``release`` comes when it has been answered."""
        if not self._in_progress.begin():
            return None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        taken = self._recent[-1]
        taken.count += 1
        return taken

    def release(self, taken: Taken) -> None:
        """Count a request as answered."""
        taken.count -= 1
        if taken.is_recent:
            self._in_progress.end()

    def _tick(self) -> None:
        oldest = self._recent.popleft()
        oldest.is_recent = False
        for _ in range(oldest.count):
            self._in_progress.end(is_answered=False)
        self._recent.append(Taken())
        is_busy = any(taken.count for taken in self._recent)
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick) if is_busy else None
