"""How fast a provider may be called, by its own word: HTTP 429, 503 and Retry-After.

Plain objects with a clock, without locks: all calls of a process are made in one thread, see ``http_calls``.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from uuid import UUID

from django.utils.http import parse_http_date

# Calls a second. At the highest pace nothing waits: a call takes longer than its turn. Below the lowest, Retry-After is
# what holds calls back.
HIGHEST_PACE = 1000.0
LOWEST_PACE = 0.5
# How many calls a second the pace gains in a second in which it is used up and nothing is throttled.
RAISE = 1.0
# In seconds: the longest wait that a provider gets, and the wait for a Retry-After that is missing or unreadable.
LONGEST_WAIT = 300.0
DEFAULT_WAIT = 5.0
# After so many seconds in which a call is throttled while other calls get through, the call itself is at fault.
ALONE_SECONDS = 3600.0
# A throttled call comes so many seconds after the provider is open again: if it alone is at fault, the other calls have
# got through by then, also those of other partitions.
HEAD_START = 1.0
# A throttled call that was not asked about for so long belongs to another process by now.
_FORGET_SECONDS = 900.0

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

Clock = Callable[[], float]


def retry_after(header: str | None, *, now: float) -> float | None:
    """The seconds that a Retry-After header (seconds or an HTTP-date) asks for, 0 to LONGEST_WAIT.

    ``now`` is the provider's time in seconds since 1970. None if the header is missing or is neither.
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            seconds = parse_http_date(text) - now
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT)


class Pace:
    """Calls a second to one provider: halved when it throttles, raised by ``RAISE`` a second while it does not."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._rate = HIGHEST_PACE
        self._next_at = float("-inf")
        self._closed_until = float("-inf")
        self._fell_at = float("-inf")
        # Starts of the last second: the highest pace is far above what is called, half of it is still too fast.
        self._started: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Calls a second, LOWEST_PACE to HIGHEST_PACE."""
        return self._rate

    def closed_for(self) -> float:
        """For how many seconds from now the provider wants no call."""
        return max(0.0, self._closed_until - self._clock())

    def take(self) -> float:
        """Take the turn of one call: 0 if the call starts now, or the seconds after which to ask again."""
        now = self._clock()
        start_at = max(self._next_at, self._closed_until)
        if start_at > now:
            return start_at - now
        self._next_at = now + 1 / self._rate
        self._started.append(now)
        self._forget_old_starts(now)
        return 0.0

    def passed(self, started_at: float) -> None:
        """Note that a call that started at ``started_at`` (by the clock) was not throttled."""
        if started_at >= self._fell_at:
            self._rate = min(HIGHEST_PACE, self._rate + RAISE / self._rate)

    def throttled(self, started_at: float, seconds: float) -> bool:
        """Note that a call was throttled: no call for ``seconds``. Returns whether the pace was halved.

        It is not halved again by calls that were under way when it was: they say the same thing.
        """
        now = self._clock()
        self._closed_until = max(self._closed_until, now + seconds)
        if started_at < self._fell_at:
            return False
        self._forget_old_starts(now)
        rate = float(len(self._started)) if self._rate == HIGHEST_PACE else self._rate
        self._rate = max(LOWEST_PACE, rate / 2)
        self._next_at = max(self._next_at, now + 1 / self._rate)
        self._fell_at = now
        return True

    def _forget_old_starts(self, now: float) -> None:
        while self._started and now - self._started[0] > 1.0:
            self._started.popleft()


class Cause(Enum):
    """Why a call was throttled."""

    PROVIDER = "the provider wants fewer calls"
    CALL = "this call, while others get through"
    CALL_FOR_GOOD = "this call, for ALONE_SECONDS"


class ThrottledCalls:
    """Tells the call that is throttled alone from a provider that throttles, by Idempotency-Key."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[UUID, _ThrottledCall] = {}
        self._passed = 0
        self._throttled = 0

    def passed(self, key: UUID) -> None:
        """Note that a call got through."""
        self._passed += 1
        self._calls.pop(key, None)

    def throttled(self, key: UUID, seconds: float) -> Cause:
        """Note that a call was throttled and shall come again after ``seconds``; returns what is at fault."""
        now = self._clock()
        self._forget_old_calls(now)
        call = self._calls.get(key)
        # Since its last try others were throttled and none got through: the provider throttles every call.
        if call is None or (call.passed == self._passed and call.throttled < self._throttled):
            call = self._calls[key] = _ThrottledCall(now)
        elif call.passed < self._passed:
            call.alone += 1
        self._throttled += 1
        call.passed, call.throttled, call.seen_at = self._passed, self._throttled, now
        if call.alone and now - call.first_at >= ALONE_SECONDS:
            del self._calls[key]
            return Cause.CALL_FOR_GOOD
        if call.alone:
            # Twice as long each time. The exponent is bounded: a float is not.
            call.not_before = now + max(seconds, min(2.0 ** min(call.alone, 16), LONGEST_WAIT))
            return Cause.CALL
        call.not_before = now + seconds + HEAD_START
        return Cause.PROVIDER

    def wait(self, key: UUID) -> float:
        """The seconds before the call may be tried again, 0 for a call that was not throttled."""
        if (call := self._calls.get(key)) is None:
            return 0.0
        call.seen_at = self._clock()
        return max(0.0, call.not_before - call.seen_at)

    def _forget_old_calls(self, now: float) -> None:
        for key, call in list(self._calls.items()):
            if now - call.seen_at > _FORGET_SECONDS:
                del self._calls[key]


class _ThrottledCall:
    """Since when a call is throttled, and how often though others got through since its try before."""

    def __init__(self, first_at: float) -> None:
        self.first_at = self.seen_at = self.not_before = first_at
        self.alone = 0
        # How many calls had got through, and been throttled, at its last try.
        self.passed = 0
        self.throttled = 0


class CallPostponed(Exception):
    """A call was not made, or the provider wants it later: make it again after ``seconds``."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class CallThrottled(CallPostponed):
    """A provider answered a call with "slow down", or has not taken calls again since it did."""
