"""HTTP calls to an external service: concurrent, retried under the same idempotency key, judged together.

A single failed call does not show whether the service is down or cannot answer this one call. All calls together do:
when the service is down no call succeeds, and then no message is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import httpx2
from django.conf import settings
from django.utils.http import parse_http_date

from . import http_client, metrics
from .failing_calls import CallRecord
from .processes.lifecycle import StopFlag
from .processes.log_limit import LogLimit
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

# How many calls to one service are in flight at once.
PARALLEL = 16
# Pauses before the second and the third try, in seconds. A Retry-After of the service is honoured up to LONGEST_PAUSE.
PAUSES = (0.3, 1.0)
LONGEST_PAUSE = 5.0
# Time limit of one ``post_all``, in seconds: three fit into a consumer's max.poll.interval.ms (300 s).
BUDGET = 60.0
# How long one ``post_all`` waits for the pace, in seconds from its first wait. Longer than the 2 s between two calls at
# the lowest pace; and short, so that successful calls are settled and the consumer polls Kafka soon.
PACED_SECONDS = 3.0
# At least so many seconds lie between two log lines about a throttling provider.
LOG_SECONDS = 60.0
# After at most so many seconds a postponed call that is throttled alone is tried again, and with it its partition.
_ALONE_POLL_SECONDS = 1.0
_POLL_SECONDS = 0.1

_RETRYABLE = frozenset({408, 425})
# Not the fault of the message: the URL or the credentials are wrong.
_MISDIRECTED = frozenset({401, 403, 404, 405, 407})


class HttpCall(NamedTuple):
    """A POST of ``body`` (JSON); ``traceparent`` may be empty.

    Calls with the same ``ordering_key`` are made one after the other, in order; None means no order.
    """

    idempotency_key: UUID
    body: bytes
    traceparent: str = ""
    ordering_key: int | None = None


class Endpoint:
    """One URL of an external service, shared by threads: their calls together show whether the service is down.

    They also share the pace of the calls. Use ``endpoint`` to get the instance of this process.
    """

    def __init__(self, name: str, url: str, *, headers: Mapping[str, str] = {}, fix_hint: str) -> None:
        """``name`` of the service in logs; ``fix_hint`` names the settings to check when it refuses every call."""
        self.name = name
        self._url = url
        self._headers = {**headers, "content-type": "application/json"}
        self._fix_hint = fix_hint
        self._record = CallRecord()
        self._slots = asyncio.Semaphore(PARALLEL)
        # Used only in the event loop's thread.
        self._pace_lock = asyncio.Lock()
        self._pace = Pace()
        self._throttled = ThrottledCalls()
        self._log_limit = LogLimit(LOG_SECONDS)
        self._reopening_logged = True
        metrics.PACE.labels(name).set(self._pace.rate)

    def post_all(self, calls: Sequence[HttpCall], stop: StopFlag) -> list[Exception | None]:
        """Make ``calls``, several at once; returns for each call None if it was answered with 2xx, or its error.

        CallRefused: the same call would be refused again. CallFailed: its effect is unknown, also when ``stop`` came
        first. CallPostponed: not made, there was no time left at the pace that the provider allows; CallThrottled: the
        provider asked to slow down. Raises ServiceUnavailable when no call succeeds, those of other threads included.
        Takes at most about ``BUDGET`` seconds plus one timeout.
        """
        since = self._record.successes
        limits = _Limits(stop)
        outcomes: dict[int, Future[Exception | None]] = {}
        last_by_key: dict[int, Future[Exception | None]] = {}
        loop = http_client.loop()

        def start(indexes: Sequence[int]) -> list[Future[Exception | None]]:
            for index in indexes:
                call = calls[index]
                previous = None if call.ordering_key is None else last_by_key.get(call.ordering_key)
                outcomes[index] = asyncio.run_coroutine_threadsafe(self._post(call, limits, previous), loop)
                if call.ordering_key is not None:
                    last_by_key[call.ordering_key] = outcomes[index]
            return [outcomes[index] for index in indexes]

        # In order, but calls that failed before come last: a redelivered batch may begin with calls that never succeed.
        # First as many as run at once: if none of them succeeds, the rest is not tried and costs no timeouts.
        failing = self._record.failing()
        failing_keys = {
            call.ordering_key for call in calls if call.idempotency_key in failing and call.ordering_key is not None
        }
        order = sorted(
            range(len(calls)),
            key=lambda index: calls[index].idempotency_key in failing or calls[index].ordering_key in failing_keys,
        )
        answered = any(_answered(future.result()) for future in as_completed(start(order[:PARALLEL])))
        if not answered:
            self._raise_if_down(calls, outcomes, since, stop)
        for future in start(order[PARALLEL:]):
            answered = _answered(future.result()) or answered
        if not answered:
            self._raise_if_down(calls, outcomes, since, stop)
        else:
            self._record_failures(calls, outcomes, since)
        return [outcomes[index].result() for index in range(len(calls))]

    def _raise_if_down(
        self, calls: Sequence[HttpCall], outcomes: Mapping[int, Future[Exception | None]], since: int, stop: StopFlag
    ) -> None:
        failed = self._record_failures(calls, outcomes, since)
        if failed and not stop and not self._record.others_succeed(failed):
            error = next(future.result() for future in outcomes.values() if isinstance(future.result(), CallFailed))
            raise ServiceUnavailable(f"nothing gets through to {self.name}: {error}")

    def _record_failures(
        self, calls: Sequence[HttpCall], outcomes: Mapping[int, Future[Exception | None]], since: int
    ) -> list[UUID]:
        failed = [
            calls[index].idempotency_key
            for index, future in outcomes.items()
            if isinstance(future.result(), CallFailed)
        ]
        self._record.failed(failed, since)
        return failed

    async def _post(
        self, call: HttpCall, limits: _Limits, previous: Future[Exception | None] | None
    ) -> Exception | None:
        """Make a call with its retries, after the ``previous`` call of its ordering key; postponed if that was."""
        if previous is not None:
            outcome = await asyncio.wrap_future(previous)
            if isinstance(outcome, CallPostponed):
                return outcome
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
                return self._record_throttled(call, outcome.error, outcome.slow_down, started_at)
            if outcome is None:
                self._record_success(call, started_at)
                return None
            failure = outcome.error
            if not outcome.retry:
                break
            if pause and await _wait(limits.stop, max(outcome.wait, pause * random.uniform(0.5, 1.5))):
                return CallFailed("stopped")
        return failure

    async def _wait_for_turn(self, call: HttpCall, limits: _Limits) -> CallPostponed | None:
        """Wait until the pace allows the call; returns None, or why it is postponed. One call waits at a time."""
        async with self._pace_lock:
            if alone := self._throttled.wait(call.idempotency_key):
                seconds = max(self._pace.closed_for(), min(alone, _ALONE_POLL_SECONDS))
                return CallThrottled(f"{self.name} throttled the call", seconds)
            while not limits.stop and (wait := self._pace.take()):
                if closed := self._pace.closed_for():
                    return CallThrottled(f"{self.name} asks to slow down", closed)
                if time.monotonic() + wait > limits.paced_until():
                    return CallPostponed(f"not called: no turn was left at the pace of {self.name}", 0.0)
                await asyncio.sleep(min(wait, _POLL_SECONDS))
        return None

    def _record_throttled(self, call: HttpCall, error: Exception, seconds: float, started_at: float) -> Exception:
        """Record that the provider throttled a call; returns the error of the call."""
        metrics.THROTTLED.labels(self.name).inc()
        cause = self._throttled.throttled(call.idempotency_key, seconds)
        if cause is Cause.CALL_FOR_GOOD:
            return CallRefused(
                f"{self.name} {error} for {ALONE_SECONDS / 60:.0f} minutes while other calls got through"
            )
        if cause is Cause.CALL:
            wait = self._throttled.wait(call.idempotency_key)
            return CallThrottled(f"{self.name} {error}, to this call alone", min(wait, _ALONE_POLL_SECONDS))
        halved = self._pace.throttled(started_at, seconds)
        metrics.PACE.labels(self.name).set(self._pace.rate)
        if halved and self._log_limit.due("throttled"):
            self._reopening_logged = False
            logger.warning(
                "%s asks to slow down (%s): no call for %.0f s, then at most %.1f calls a second",
                self.name, error, seconds, self._pace.rate,
            )  # fmt: skip
        return CallThrottled(f"{self.name} asks to slow down: {error}", self._pace.closed_for())

    def _record_success(self, call: HttpCall, started_at: float) -> None:
        self._pace.passed(started_at)
        self._record.succeeded(call.idempotency_key)
        self._throttled.passed(call.idempotency_key)
        metrics.PACE.labels(self.name).set(self._pace.rate)
        if not self._reopening_logged and not self._pace.closed_for():
            self._reopening_logged = True
            logger.info("%s takes calls again, at most %.1f a second", self.name, self._pace.rate)

    async def _try(self, call: HttpCall) -> _Failure | None:
        headers = {**self._headers, "Idempotency-Key": str(call.idempotency_key)}
        if call.traceparent:
            headers["traceparent"] = call.traceparent
        try:
            response = await http_client.post(self._url, call.body, headers, settings.HTTP_TIMEOUT_SECONDS)
        except http_client.NoAnswer as error:
            return _Failure(CallFailed(str(error)))
        except http_client.CannotBeCalled as error:
            return _Failure(CallFailed(f"{error}; {self._fix_hint}"), retry=False)
        return self._classify(response)

    def _classify(self, response: httpx2.Response) -> _Failure | None:
        status = response.status_code
        if response.is_success:
            return None
        asked = retry_after(response.headers.get("Retry-After"), now=_time_of(response))
        if status == 429 or (status == 503 and "Retry-After" in response.headers):
            slow_down = DEFAULT_WAIT if asked is None else asked
            return _Failure(CallFailed(f"answered {status}"), slow_down=slow_down)
        if response.is_server_error or status in _RETRYABLE:
            return _Failure(CallFailed(f"answered {status}"), wait=min(asked or 0.0, LONGEST_PAUSE))
        if status in _MISDIRECTED or not response.is_client_error:
            return _Failure(CallFailed(f"answered {status}; {self._fix_hint}"), retry=False)
        return _Failure(CallRefused(f"{self.name} refused the call: answered {status}"), retry=False)


class _Failure(NamedTuple):
    error: Exception
    retry: bool = True
    # The pause that the service asks for before the next try (Retry-After), in seconds.
    wait: float = 0.0
    # Set if the service throttles: for how many seconds it wants no call.
    slow_down: float | None = None


class _Limits:
    """The limits of one ``post_all``: stop flag, deadline, and the time that it may wait for the pace."""

    def __init__(self, stop: StopFlag) -> None:
        self.stop = stop
        self.deadline = time.monotonic() + BUDGET
        self._paced_until: float | None = None

    def paced_until(self) -> float:
        """Until when calls wait for the pace, counted from the first call that waits.

        Not from the start: where groups share a provider, calls first queue behind those of the other group.
        """
        if self._paced_until is None:
            self._paced_until = time.monotonic() + PACED_SECONDS
        return self._paced_until


_creation_lock = threading.Lock()


def endpoint(name: str, url: str, *, headers: Mapping[str, str] = {}, fix_hint: str) -> Endpoint:
    """Return the process's Endpoint with these arguments: all groups that call a provider share its pace."""
    # Without the lock two threads could each create an Endpoint.
    with _creation_lock:
        return _create_endpoint(name, url, tuple(headers.items()), fix_hint)


@lru_cache(maxsize=8)
def _create_endpoint(name: str, url: str, headers: tuple[tuple[str, str], ...], fix_hint: str) -> Endpoint:
    return Endpoint(name, url, headers=dict(headers), fix_hint=fix_hint)


async def _wait(stop: StopFlag, seconds: float) -> bool:
    """Wait up to ``seconds``; returns whether to stop."""
    deadline = time.monotonic() + seconds
    while not stop and (remaining := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(remaining, _POLL_SECONDS))
    return bool(stop)


def _answered(outcome: Exception | None) -> bool:
    """Whether the service handled the call, by success or by refusal."""
    return not isinstance(outcome, CallFailed | CallPostponed)


def _time_of(response: httpx2.Response) -> float:
    """The provider's time (its Date header), to compare dates in its headers with: our clock may be minutes off."""
    try:
        return float(parse_http_date(response.headers.get("Date", "")))
    except ValueError:
        return time.time()


class CallRefused(Exception):
    """An external service refused a call for good: the same call would be refused again."""


class CallFailed(Exception):
    """An external service did not answer a call, or answered with an error: its effect is unknown."""
