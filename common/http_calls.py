"""Calls to a service outside: many at once, tried again under the same idempotency key, judged together.

A service that is away and a call that the service cannot answer look the same from a single call. Seen over all calls
they differ: when the service is away nothing gets through, and then nobody's message is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, as_completed
from functools import cache, lru_cache
from typing import NamedTuple
from uuid import UUID

import httpx
from django.conf import settings
from django.utils.http import parse_http_date

from . import metrics
from .processes.lifecycle import StopFlag
from .processes.outages import ServiceUnavailable
from .throttling import (
    ALONE_SECONDS,
    DEFAULT_WAIT,
    CallPostponed,
    CallThrottled,
    Cause,
    Pace,
    ThrottledCalls,
    retry_after,
)

logger = logging.getLogger(__name__)

# It writes a line per call with the whole URL, which may carry a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)

# How many calls to one service are under way at once.
PARALLEL = 16
# Before the second and the third try, in seconds; a service that names a time itself is given at most the longest.
PAUSES = (0.3, 1.0)
LONGEST_PAUSE = 5.0
# For all calls of one ``post_all``, in seconds: three of them fit into the time that Kafka gives a consumer.
BUDGET = 60.0
# For so long one ``post_all`` waits for the turns of its calls, in seconds from its first turn. That is more than one
# at the lowest pace, and short: what got through is settled then, Kafka hears from the consumer, the rest comes later.
PACED_SECONDS = 3.0
# How often a throttled provider is worth a line, in seconds.
LOG_SECONDS = 60.0
# When to ask again for a call that waits alone: its partition goes on with the others meanwhile.
_LOOK_AT_ALONE_SECONDS = 1.0
# So many calls may fail while others get through without the service being to blame, or a tenth of those others.
FEW = 3
# Calls that failed and were not made again for so many seconds are no longer counted.
_FORGOTTEN_AFTER = 120.0
# An answer's body interests nobody; one that is read to its end leaves the connection for the next call.
_BODY_BYTES = 64 * 1024
_LOOK_SECONDS = 0.1

_TRY_AGAIN = frozenset({408, 425})
# Not the fault of the message: the address is wrong, or the key.
_MISDIRECTED = frozenset({401, 403, 404, 405, 407})


class HttpCall(NamedTuple):
    """A POST of ``body`` (JSON); ``traceparent`` may be empty.

    Calls of one ``ordering_key`` are made one after the other, in order.
    """

    idempotency_key: UUID
    body: bytes
    traceparent: str = ""
    ordering_key: int | None = None


class Endpoint:
    """One address of a service outside. Threads may share it: only together they know whether it is away.

    They also share the pace at which it is called; see ``endpoint`` for the one that a process shares.
    """

    def __init__(self, name: str, url: str, *, headers: Mapping[str, str] = {}, fix_hint: str) -> None:
        """``name`` is what logs call the service; ``fix_hint`` names the settings to check when it refuses everything."""
        self.name = name
        self._url = url
        self._headers = {**headers, "content-type": "application/json"}
        self._fix_hint = fix_hint
        self._record = _Record()
        self._slots = asyncio.Semaphore(PARALLEL)
        # Within the loop's thread only.
        self._turns = asyncio.Lock()
        self._pace = Pace()
        self._throttled = ThrottledCalls()
        self._logged_at = float("-inf")
        self._reopening_logged = True
        metrics.PACE.labels(name).set(self._pace.rate)

    def post_all(self, calls: Sequence[HttpCall], stop: StopFlag) -> list[Exception | None]:
        """Make ``calls``, several at once; returns for each None if it was answered with 2xx, or its error.

        CallRefused: the same call would be refused again. CallFailed: it may have had its effect or not, also when
        ``stop`` came first. CallPostponed: there was no time left for it at the pace that the provider allows;
        CallThrottled: the provider asked to slow down. Raises ServiceUnavailable when none of them gets through and the
        calls of other threads do not either; it takes about ``BUDGET`` seconds and one timeout at most.
        """
        since = self._record.successes
        limits = _Limits(stop)
        outcomes: dict[int, Future[Exception | None]] = {}
        last_of_line: dict[int, Future[Exception | None]] = {}

        def begin(places: Sequence[int]) -> list[Future[Exception | None]]:
            for place in places:
                call = calls[place]
                before = None if call.ordering_key is None else last_of_line.get(call.ordering_key)
                outcomes[place] = asyncio.run_coroutine_threadsafe(self._post(call, limits, before), _loop())
                if call.ordering_key is not None:
                    last_of_line[call.ordering_key] = outcomes[place]
            return [outcomes[place] for place in places]

        # In order, but those that failed before come last: a batch that comes again may begin with some that never get
        # through. First as many as are under way at once: when none of those gets through, the others need not wait for
        # their timeouts.
        failing = self._record.failing()
        lines = {
            call.ordering_key for call in calls if call.idempotency_key in failing and call.ordering_key is not None
        }
        order = sorted(
            range(len(calls)),
            key=lambda place: calls[place].idempotency_key in failing or calls[place].ordering_key in lines,
        )
        answered = any(_answered(future.result()) for future in as_completed(begin(order[:PARALLEL])))
        if not answered:
            self._raise_if_away(calls, outcomes, since, stop)
        for future in begin(order[PARALLEL:]):
            answered = _answered(future.result()) or answered
        if not answered:
            self._raise_if_away(calls, outcomes, since, stop)
        else:
            self._note_failures(calls, outcomes, since)
        return [outcomes[place].result() for place in range(len(calls))]

    def _raise_if_away(
        self, calls: Sequence[HttpCall], outcomes: Mapping[int, Future[Exception | None]], since: int, stop: StopFlag
    ) -> None:
        failed = self._note_failures(calls, outcomes, since)
        if failed and not stop and not self._record.others_get_through(failed):
            error = next(future.result() for future in outcomes.values() if isinstance(future.result(), CallFailed))
            raise ServiceUnavailable(f"nothing gets through to {self.name}: {error}")

    def _note_failures(
        self, calls: Sequence[HttpCall], outcomes: Mapping[int, Future[Exception | None]], since: int
    ) -> list[UUID]:
        failed = [
            calls[place].idempotency_key
            for place, future in outcomes.items()
            if isinstance(future.result(), CallFailed)
        ]
        self._record.failed(failed, since)
        return failed

    async def _post(self, call: HttpCall, limits: _Limits, before: Future[Exception | None] | None) -> Exception | None:
        """One call with its tries, once it is its turn."""
        if before is not None:
            earlier = await asyncio.wrap_future(before)
            if isinstance(earlier, CallPostponed):
                return earlier
        async with self._slots:
            return await self._post_now(call, limits)

    async def _post_now(self, call: HttpCall, limits: _Limits) -> Exception | None:
        failure: Exception = CallPostponed("not called: there was no time left", 0.0)
        for pause in (*PAUSES, 0.0):
            if time.monotonic() >= limits.deadline:
                break
            postponed = await self._wait_for_turn(call, limits)
            if limits.stop:
                return CallFailed("stopped")
            if postponed is not None:
                return postponed
            started_at = time.monotonic()
            outcome = await self._try(call)
            if outcome is not None and outcome.slow_down is not None:
                return self._slow_down(call, outcome.error, outcome.slow_down, started_at)
            if outcome is None:
                self._got_through(call, started_at)
                return None
            failure = outcome.error
            if not outcome.again:
                break
            if pause and await _wait(limits.stop, max(outcome.wait, pause * random.uniform(0.5, 1.5))):
                return CallFailed("stopped")
        return failure

    async def _wait_for_turn(self, call: HttpCall, limits: _Limits) -> CallPostponed | None:
        """Wait until the pace lets the call begin, or return how it is postponed; one call after the other."""
        async with self._turns:
            if alone := self._throttled.wait(call.idempotency_key):
                seconds = max(self._pace.closed_for(), min(alone, _LOOK_AT_ALONE_SECONDS))
                return CallThrottled(f"{self.name} throttled the call", seconds)
            while not limits.stop and (wait := self._pace.take()):
                if closed := self._pace.closed_for():
                    return CallThrottled(f"{self.name} asks to slow down", closed)
                if time.monotonic() + wait > limits.paced_until():
                    return CallPostponed(f"not called: no turn was left at the pace of {self.name}", 0.0)
                await asyncio.sleep(min(wait, _LOOK_SECONDS))
        return None

    def _slow_down(self, call: HttpCall, error: Exception, seconds: float, started_at: float) -> Exception:
        """What becomes of a call that the provider throttled, and of the pace."""
        metrics.THROTTLED.labels(self.name).inc()
        cause = self._throttled.throttled(call.idempotency_key, seconds)
        if cause is Cause.CALL_FOR_GOOD:
            return CallRefused(
                f"{self.name} {error} for {ALONE_SECONDS / 60:.0f} minutes while other calls got through"
            )
        if cause is Cause.CALL:
            wait = self._throttled.wait(call.idempotency_key)
            return CallThrottled(f"{self.name} {error}, to this call alone", min(wait, _LOOK_AT_ALONE_SECONDS))
        fell = self._pace.throttled(started_at, seconds)
        metrics.PACE.labels(self.name).set(self._pace.rate)
        if fell and time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at, self._reopening_logged = time.monotonic(), False
            logger.warning(
                "%s asks to slow down (%s): no call for %.0f s, then at most %.1f calls a second",
                self.name, error, seconds, self._pace.rate,
            )  # fmt: skip
        return CallThrottled(f"{self.name} asks to slow down: {error}", self._pace.closed_for())

    def _got_through(self, call: HttpCall, started_at: float) -> None:
        self._pace.passed(started_at)
        self._record.got_through(call.idempotency_key)
        self._throttled.passed(call.idempotency_key)
        metrics.PACE.labels(self.name).set(self._pace.rate)
        if not self._reopening_logged and not self._pace.closed_for():
            self._reopening_logged = True
            logger.info("%s takes calls again, at most %.1f a second", self.name, self._pace.rate)

    async def _try(self, call: HttpCall) -> _NoSuccess | None:
        headers = {**self._headers, "Idempotency-Key": str(call.idempotency_key)}
        if call.traceparent:
            headers["traceparent"] = call.traceparent
        seconds, response = settings.HTTP_TIMEOUT_SECONDS, None
        try:
            # Over everything: a timeout of the client begins anew with every byte of an answer that drips.
            async with (
                asyncio.timeout(seconds),
                _client().stream("POST", self._url, content=call.body, headers=headers) as response,
            ):
                await _read_little(response)
        # Only their kind is told: some texts quote headers, and with them the key.
        except (TimeoutError, httpx.TransportError) as error:
            # Once there is a status it tells all, whatever becomes of the body.
            if response is None:
                return _NoSuccess(CallFailed(_told(error, seconds)))
        except (httpx.InvalidURL, UnicodeError) as error:
            return _NoSuccess(CallFailed(f"cannot be called ({type(error).__name__}); {self._fix_hint}"), again=False)
        return self._judged(response)

    def _judged(self, response: httpx.Response) -> _NoSuccess | None:
        status = response.status_code
        if response.is_success:
            return None
        asked = retry_after(response.headers.get("Retry-After"), now=_time_of(response))
        if status == 429 or (status == 503 and "Retry-After" in response.headers):
            slow_down = DEFAULT_WAIT if asked is None else asked
            return _NoSuccess(CallFailed(f"answered {status}"), slow_down=slow_down)
        if response.is_server_error or status in _TRY_AGAIN:
            return _NoSuccess(CallFailed(f"answered {status}"), wait=min(asked or 0.0, LONGEST_PAUSE))
        if status in _MISDIRECTED or not response.is_client_error:
            return _NoSuccess(CallFailed(f"answered {status}; {self._fix_hint}"), again=False)
        return _NoSuccess(CallRefused(f"{self.name} refused the call: answered {status}"), again=False)


class _NoSuccess(NamedTuple):
    error: Exception
    again: bool = True
    # The pause that the service asks for before the next try, in seconds.
    wait: float = 0.0
    # The service throttles, and wants no call for so many seconds.
    slow_down: float | None = None


class _Limits:
    """What ends one ``post_all`` early."""

    def __init__(self, stop: StopFlag) -> None:
        self.stop = stop
        self.deadline = time.monotonic() + BUDGET
        self._paced_until: float | None = None

    def paced_until(self) -> float:
        """Until when its calls wait for their turns, counted from the first that waits.

        Where groups share a provider, the calls of one may queue behind those of the other: that time is not its own.
        """
        if self._paced_until is None:
            self._paced_until = time.monotonic() + PACED_SECONDS
        return self._paced_until


class _Failing(NamedTuple):
    # How many calls had got through before this one failed for the first time.
    since: int
    seen_at: float


class _Record:
    """What gets through and what does not, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[UUID, _Failing] = {}
        self.successes = 0

    def got_through(self, key: UUID) -> None:
        with self._lock:
            self.successes += 1
            self._failing.pop(key, None)

    def failing(self) -> set[UUID]:
        """The calls that were given up and have not got through since."""
        with self._lock:
            return set(self._failing)

    def failed(self, keys: Collection[UUID], since: int) -> None:
        """Note calls that were given up; ``since``: how many had got through when they began."""
        now = time.monotonic()
        with self._lock:
            for key, failing in list(self._failing.items()):
                if now - failing.seen_at > _FORGOTTEN_AFTER:
                    del self._failing[key]
            for key in keys:
                before = self._failing.get(key)
                self._failing[key] = _Failing(before.since if before else since, now)

    def others_get_through(self, keys: Collection[UUID]) -> bool:
        """Whether one of these failing calls is an exception among calls that get through."""
        with self._lock:
            return any(self._is_exception(self.successes - self._failing[key].since) for key in keys)

    def _is_exception(self, successes: int) -> bool:
        return successes > 0 and len(self._failing) <= max(FEW, successes // 10)


_making = threading.Lock()


def endpoint(name: str, url: str, *, headers: Mapping[str, str] = {}, fix_hint: str) -> Endpoint:
    """The process's Endpoint with these arguments: all groups that call a provider share its pace."""
    # Two threads that ask at once would each make one.
    with _making:
        return _make_endpoint(name, url, tuple(headers.items()), fix_hint)


@lru_cache(maxsize=8)
def _make_endpoint(name: str, url: str, headers: tuple[tuple[str, str], ...], fix_hint: str) -> Endpoint:
    return Endpoint(name, url, headers=dict(headers), fix_hint=fix_hint)


def _loop() -> asyncio.AbstractEventLoop:
    """Where all calls are made: a thread begun at the first one, which no process that is forked has."""
    with _making:
        return _make_loop()


@cache
def _make_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http-calls", daemon=True).start()
    return loop


@cache
def _client() -> httpx.AsyncClient:
    """One for all calls, within the loop."""
    return httpx.AsyncClient(timeout=None)


async def _wait(stop: StopFlag, seconds: float) -> bool:
    """Wait up to ``seconds``; returns whether to stop."""
    deadline = time.monotonic() + seconds
    while not stop and (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _LOOK_SECONDS))
    return bool(stop)


def _told(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s"
    return f"no connection ({type(error).__name__})"


def _answered(outcome: Exception | None) -> bool:
    """Whether the service dealt with the call, be it by refusing it."""
    return not isinstance(outcome, CallFailed | CallPostponed)


async def _read_little(response: httpx.Response) -> None:
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read > _BODY_BYTES:
            break


def _time_of(response: httpx.Response) -> float:
    """The provider's time, which dates in its headers are of: ours may be minutes off."""
    try:
        return float(parse_http_date(response.headers.get("Date", "")))
    except ValueError:
        return time.time()


class CallRefused(Exception):
    """A service outside refused a call for good: the same call again would be refused again."""


class CallFailed(Exception):
    """A service outside did not answer a call, or not with success: it may have had its effect or not."""
