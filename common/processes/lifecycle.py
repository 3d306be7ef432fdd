"""Start and stop of a process: signals, waiting for services, database connections after a fault."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.db import connection
from redis.exceptions import RedisError, ResponseError

from ..postgres.texts import storable
from ..redis_client import redis_connection
from .outages import BadRedisDatabase, ServiceUnavailable

_POLL_SECONDS = 0.1
# Redis's answer to a SELECT of a database number past its `databases` setting.
_NO_DATABASE = "DB index is out of range"


class StopFlag:
    """True once the process was asked to stop.

    A plain attribute: ``threading.Event.set`` inside a signal handler can deadlock on the event's own lock.
    """

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self) -> None:
        self.requested = True

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds``; returns whether to stop."""
        deadline = time.monotonic() + seconds
        while not self:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            time.sleep(min(remaining, _POLL_SECONDS))
        return bool(self)

    def watched(self, tick: Callable[[], None]) -> StopFlag:
        """Return a view of this flag that calls ``tick`` whenever it is asked: a loop that asks does not hang."""
        return _WatchedStopFlag(self, tick)

    def or_when(self, condition: Callable[[], bool]) -> StopFlag:
        """Return a view of this flag that is true as well while ``condition`` is."""
        return _EitherStopFlag(self, condition)


class _WatchedStopFlag(StopFlag):
    def __init__(self, flag: StopFlag, tick: Callable[[], None]) -> None:
        super().__init__()
        self._flag = flag
        self._tick = tick

    def __bool__(self) -> bool:
        self._tick()
        return bool(self._flag)

    def request(self) -> None:
        self._flag.request()


class _EitherStopFlag(StopFlag):
    def __init__(self, flag: StopFlag, condition: Callable[[], bool]) -> None:
        super().__init__()
        self._flag = flag
        self._condition = condition

    def __bool__(self) -> bool:
        return bool(self._flag) or self._condition()

    def request(self) -> None:
        self._flag.request()


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Yield a flag that SIGTERM and SIGINT set; a second SIGINT raises KeyboardInterrupt. Restores the handlers."""
    flag = StopFlag()
    previous: dict[signal.Signals, Any] = {}

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.requested and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        flag.requested = True

    for wanted in (signal.SIGTERM, signal.SIGINT):
        previous[wanted] = signal.signal(wanted, handle)
    try:
        yield flag
    finally:
        for changed, handler in previous.items():
            signal.signal(changed, handler)


def drop_connection() -> None:
    """Close this thread's database connection; the next query opens a new one."""
    connection.close()


def is_behind_pooler() -> bool:
    """Whether this thread is connected through a connection pooler. Raises what the database raises.

    A pooler reports a backend id of its own at connect, other than the server's pg_backend_pid().
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone() != (connection.connection.info.backend_pid,))


def check_database() -> None:
    """Raise ServiceUnavailable unless PostgreSQL answers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:
        drop_connection()
        raise ServiceUnavailable(f"PostgreSQL does not answer: {first_line(error)}") from error


def check_redis() -> None:
    """Raise ServiceUnavailable unless Redis answers; BadRedisDatabase if it has no database of that number."""
    try:
        redis_connection().ping()
    except RedisError as error:
        if isinstance(error, ResponseError) and _NO_DATABASE in str(error):
            raise BadRedisDatabase(
                "REDIS_URL: its server has no database of that number, use a smaller number (as in redis://host:6379/0)"
            ) from error
        raise ServiceUnavailable(f"Redis does not answer: {first_line(error)}") from error


def wait_for(check: Callable[[], None], seconds: float, stop: StopFlag) -> None:
    """Call ``check`` until it raises no ServiceUnavailable; re-raises it after ``seconds`` or on ``stop``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except ServiceUnavailable:
            if time.monotonic() >= deadline or stop.wait(0.2):
                raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, its class name if the message is empty.

    The line is ``storable``.
    """
    return storable((str(error).strip() or type(error).__name__).splitlines()[0])
