"""The pace of calls to a provider, adapted to its throttling: HTTP 429, 503 and Retry-After.

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

# In calls a second. At the highest pace no call waits: a call takes longer than the interval. Below the lowest pace,
# Retry-After spaces the calls.
HIGHEST_PACE = 1000.0
LOWEST_PACE = 0.5
# The pace grows by so many calls a second, each second in which it is used up and nothing is throttled.
RAISE = 1.0
# In seconds: the upper limit of a Retry-After, and the wait where it is missing or unreadable.
LONGEST_WAIT = 300.0
DEFAULT_WAIT = 5.0
# A call that is throttled for so many seconds while other calls succeed is itself at fault, and is refused.
ALONE_SECONDS = 3600.0
# A throttled call is repeated so many seconds after the provider takes calls again: by then other calls, also of other
# partitions, have succeeded if this call alone is at fault.
HEAD_START = 1.0
# A throttled call that was not tried for so many seconds is forgotten: another process has it by now.
_FORGET_SECONDS = 900.0

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

Clock = Callable[[], float]


def retry_after(header: str | None, *, now: float) -> float | None:
    """Parse a Retry-After header (seconds or an HTTP-date) to seconds, 0 to LONGEST_WAIT.

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
    """Calls a second to one provider: halved when it throttles, raised by ``RAISE`` a second otherwise."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._rate = HIGHEST_PACE
        self._next_at = float("-inf")
        self._closed_until = float("-inf")
        self._fell_at = float("-inf")
        # Starts of the last second. The first halving starts from their number: half of the highest pace is too fast.
        self._started: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Calls a second, LOWEST_PACE to HIGHEST_PACE."""
        return self._rate

    def closed_for(self) -> float:
        """Seconds from now in which the provider wants no call, 0 if it takes calls."""
        return max(0.0, self._closed_until - self._clock())

    def take(self) -> float:
        """Take the turn of one call: returns 0 if the call may start now, else the seconds after which to ask again."""
        now = self._clock()
        start_at = max(self._next_at, self._closed_until)
        if start_at > now:
            return start_at - now
        self._next_at = now + 1 / self._rate
        self._started.append(now)
        self._forget_old_starts(now)
        return 0.0

    def passed(self, started_at: float) -> None:
        """Record that a call that started at ``started_at`` (by the clock) was not throttled."""
        if started_at >= self._fell_at:
            self._rate = min(HIGHEST_PACE, self._rate + RAISE / self._rate)

    def throttled(self, started_at: float, seconds: float) -> bool:
        """Record that a call was throttled: no call for ``seconds``. Returns whether the pace was halved.

        Calls that were in flight when it was halved do not halve it again: they met the same limit.
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
    CALL = "this call, while others succeed"
    CALL_FOR_GOOD = "this call, for ALONE_SECONDS"


class ThrottledCalls:
    """Distinguishes a call that alone is throttled from a provider that throttles all; by Idempotency-Key."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[UUID, _ThrottledCall] = {}
        self._passed = 0
        self._throttled = 0

    def passed(self, key: UUID) -> None:
        """Record that a call succeeded."""
        self._passed += 1
        self._calls.pop(key, None)

    def throttled(self, key: UUID, seconds: float) -> Cause:
        """Record that a call was throttled and may be repeated after ``seconds``; returns what is at fault."""
        now = self._clock()
        self._forget_old_calls(now)
        call = self._calls.get(key)
        # Since its last try other calls were throttled and none succeeded: the provider throttles every call.
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
            # Doubles each time. The exponent is bounded, else the float overflows.
            call.not_before = now + max(seconds, min(2.0 ** min(call.alone, 16), LONGEST_WAIT))
            return Cause.CALL
        call.not_before = now + seconds + HEAD_START
        return Cause.PROVIDER

    def wait(self, key: UUID) -> float:
        """Seconds before the call may be tried again, 0 for a call that was not throttled."""
        if (call := self._calls.get(key)) is None:
            return 0.0
        call.seen_at = self._clock()
        return max(0.0, call.not_before - call.seen_at)

    def _forget_old_calls(self, now: float) -> None:
        for key, call in list(self._calls.items()):
            if now - call.seen_at > _FORGET_SECONDS:
                del self._calls[key]


class _ThrottledCall:
    """Since when a call is throttled, and how often alone: while other calls succeeded since its previous try."""

    def __init__(self, first_at: float) -> None:
        self.first_at = self.seen_at = self.not_before = first_at
        self.alone = 0
        # The numbers of calls that had succeeded, and been throttled, at its last try.
        self.passed = 0
        self.throttled = 0


class CallPostponed(Exception):
    """A call was not made, or the provider asks for it later: repeat it after ``seconds``."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class CallThrottled(CallPostponed):
    """A provider throttled the call, or still wants no calls since it throttled another."""
