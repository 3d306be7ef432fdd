"""The heartbeat row of a process: that it lives, when its loops last made a pass, and what its consumers hold."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import msgspec
from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from common.processes.lifecycle import first_line

from ..lag import HeldPartition
from .samples import Sampler

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
_END_SECONDS = 2.0
_BEAT = """
    INSERT INTO kafka_bridge_processheartbeat
        (id, role, host, pid, version, memory_bytes, started_at, seen_at, turned_at, polled_at, groups, partitions)
    VALUES (%(id)s, %(role)s, %(host)s, %(pid)s, %(version)s, %(memory_bytes)s,
            statement_timestamp(), statement_timestamp(), statement_timestamp() - %(idle)s * interval '1 second',
            statement_timestamp() - %(unpolled)s * interval '1 second', %(groups)s::jsonb, %(partitions)s::jsonb)
    ON CONFLICT (id) DO UPDATE SET
        memory_bytes = EXCLUDED.memory_bytes, seen_at = EXCLUDED.seen_at, turned_at = EXCLUDED.turned_at,
        polled_at = EXCLUDED.polled_at, groups = EXCLUDED.groups, partitions = EXCLUDED.partitions
    RETURNING extract(epoch FROM seen_at)::float
"""
_KILLED = """
    SELECT killed.id FROM kafka_bridge_processheartbeat AS killed
    JOIN kafka_bridge_processheartbeat AS mine ON mine.id = %(id)s
    WHERE killed.role = mine.role AND killed.host = mine.host AND killed.groups = mine.groups
      AND killed.seen_at < mine.started_at
      AND killed.seen_at < statement_timestamp() - %(silent)s * interval '1 second'
      AND (killed.seen_at - killed.started_at < %(young)s * interval '1 second') IS {is_young}
    ORDER BY killed.seen_at LIMIT {limit} FOR UPDATE OF killed SKIP LOCKED
"""
# A started process replaces one that was killed, so that of three that were killed two stay silent. Those that were
# killed before they could replace another do not count: a crash loop leaves many.
_REPLACE = f"""
    WITH replaced AS (
        DELETE FROM kafka_bridge_processheartbeat
        WHERE id = ANY(ARRAY({_KILLED.format(is_young="FALSE", limit="1")}))
           OR id = ANY(ARRAY({_KILLED.format(is_young="TRUE", limit="ALL")}))
        RETURNING seen_at - started_at >= %(young)s * interval '1 second' AS is_old
    )
    SELECT coalesce(bool_or(is_old), false) FROM replaced
"""
_REMOVE = "DELETE FROM kafka_bridge_processheartbeat WHERE id = %s"


class ConsumerReport(NamedTuple):
    """What one consumer says of itself; ``polled_at`` is on the monotonic clock, None before the first poll."""

    groups: Sequence[str]
    polled_at: float | None
    partitions: Sequence[HeldPartition]


# Gets the time in seconds since 1970; is called in the heartbeat's thread.
ReportConsumer = Callable[[float], ConsumerReport]


class Heartbeat:
    """Writes the row every five seconds in its own thread, by the database's clock, and the samples of the process.

    Each loop of the process reports its passes through ``loop()``, so that a hanging loop shows in a living process.
    """

    def __init__(self, role: str) -> None:
        self._values: dict[str, Any] = {
            "id": uuid.uuid4(),
            "role": role,
            "host": socket.gethostname()[:200],
            "pid": os.getpid(),
            "version": settings.SERVICE_VERSION,
        }
        self._ticked_at: dict[int, float] = {}
        self._consumers: list[ReportConsumer] = []
        self._sampler = Sampler(self._values["id"])
        # The database's clock less ours, in seconds, as the last beat found it.
        self._clock_offset = 0.0
        self._beaten_at = self._resumed_at = float("-inf")
        self._replacing_since = time.monotonic()
        # Ages at which it is to look for a process that it replaces: its groups are known soon after the first beat,
        # and one that was killed just before is silent only later.
        self._replace_at = [0.0, BEAT_SECONDS, float(settings.ALERT_SILENT_SECONDS)]
        self._next_beat_at = float("-inf")
        self._every_second: list[Callable[[], None]] = []
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

    def watch_consumer(self, report: ReportConsumer) -> None:
        """Report a consumer in the row. ``report`` must be safe to call while the consumer works."""
        self._consumers.append(report)

    def every_second(self, step: Callable[[], None]) -> None:
        """Have ``step``, which reads pauses, called once a second in the heartbeat's thread, also after a failure."""
        self._every_second.append(step)

    def start(self) -> None:
        """Start the thread, which runs until ``end``. Call it after any fork."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def run_until_exit(self) -> None:
        """Start the thread, and ``end`` it when the process exits.

        For workers of a server: they are forked by multiprocessing, whose children run no ``atexit`` functions.
        """
        self.start()
        Finalize(None, self.end, exitpriority=10)

    def end(self) -> None:
        """Stop the thread; deletes the row if the database answers within two seconds."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def beat(self) -> None:
        """Write the row once, and a sample if anything was counted. Raises what the database raises."""
        reports = [report(time.time() + self._clock_offset) for report in self._consumers]
        now = time.monotonic()
        if now - self._beaten_at > 2 * BEAT_SECONDS:
            # The process was suspended: its loops have had no time for a pass.
            self._resumed_at = now
        self._beaten_at = now
        polled = [report.polled_at for report in reports if report.polled_at is not None]
        partitions = [partition for report in reports for partition in report.partitions]
        values = {
            **self._values,
            "memory_bytes": _resident_bytes(),
            # Of a process without a loop the row holds the time of the beat.
            "idle": now - max(min(self._ticked_at.values(), default=now), self._resumed_at),
            "unpolled": now - min(polled) if polled else None,
            "groups": msgspec.json.encode(sorted({group for report in reports for group in report.groups})).decode(),
            "partitions": msgspec.json.encode(partitions).decode(),
        }
        with connection.cursor() as cursor:
            cursor.execute(_BEAT, values)
            (seen_at,) = cursor.fetchone() or (time.time(),)
            self._clock_offset = seen_at - time.time()
            self._replace_killed(cursor, now)
        self._sampler.write()

    def _replace_killed(self, cursor: CursorWrapper, now: float) -> None:
        """Delete the row of a process that was killed and that this one replaces, if it is time to look for one."""
        if not self._replace_at or now - self._replacing_since < self._replace_at[0]:
            return
        silent = settings.ALERT_SILENT_SECONDS
        cursor.execute(_REPLACE, {"id": self._values["id"], "silent": silent, "young": silent + 2 * BEAT_SECONDS})
        (has_replaced,) = cursor.fetchone() or (False,)
        self._replace_at = [] if has_replaced else self._replace_at[1:]

    def _run(self) -> None:
        try:
            while True:
                if time.monotonic() >= self._next_beat_at:
                    self._next_beat_at = time.monotonic() + (BEAT_SECONDS if self._try(self.beat) else 1.0)
                for step in self._every_second:
                    self._try(step, "pauses not read, as before")
                until_beat = self._next_beat_at - time.monotonic()
                if self._ended.wait(max(0.0, min(until_beat, 1.0) if self._every_second else until_beat)):
                    break
            self._try(self._remove)
        finally:
            connection.close()

    def _remove(self) -> None:
        """Delete the row, and write what was counted since the last sample."""
        with connection.cursor() as cursor:
            cursor.execute(_REMOVE, [self._values["id"]])
        self._sampler.write()

    def _try(self, step: Callable[[], None], failure: str = "no heartbeat") -> bool:
        try:
            step()
        except Exception as error:
            logger.warning("%s: %s", failure, first_line(error))
            connection.close()
            return False
        return True


def _resident_bytes() -> int | None:
    """Return the memory that the process occupies, None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
