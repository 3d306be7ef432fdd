"""Backpressure: whether the outbox is so far behind that new requests must be refused."""

from __future__ import annotations

import logging
import threading
import time

from django.conf import settings
from django.db import connection

from common.processes.lifecycle import first_line

from .published import waiting_sql

logger = logging.getLogger(__name__)

_SAMPLE_SECONDS = 1.0

# Held rows do not count: a topic that accepts no messages must not stop the requests of the others.
_OLDEST = f"""
    SELECT extract(epoch FROM statement_timestamp() - min(created_at))::float,
           (SELECT last_value FROM kafka_bridge_outboxmessage_id_seq) - min(id)
    FROM ({waiting_sql("1")}) AS waiting
"""
_COUNT = f"SELECT count(*) FROM ({waiting_sql('%(limit)s')}) AS waiting"


class OutboxBackpressure:
    """Age and depth of the unpublished outbox rows, sampled in a thread: ``refusal`` costs a request no query."""

    def __init__(self, *, share: float = 1.0, consequence: str = "requests are refused") -> None:
        """``share`` is the fraction of ``OUTBOX_MAX_DEPTH`` that is too deep; ``consequence`` begins the log line."""
        self._share = share
        self._consequence = consequence
        self._refusal: str | None = None
        self._thread: threading.Thread | None = None

    def refusal(self) -> str | None:
        """Return why new requests are refused, as a sentence; None while they are accepted."""
        return self._refusal

    def sample(self) -> None:
        """Measure age and depth once. Raises what the database raises."""
        max_depth = int(settings.OUTBOX_MAX_DEPTH * self._share)
        with connection.cursor() as cursor:
            cursor.execute(_OLDEST)
            age, span = cursor.fetchone() or (None, None)
            depth = 0
            # Counting a long backlog is slow. The ids assigned since the oldest unpublished row are at least as many as
            # the unpublished rows, so the count is needed only when they reach the limit.
            if span is not None and span >= max_depth:
                cursor.execute(_COUNT, {"limit": max_depth + 1})
                (depth,) = cursor.fetchone() or (0,)
        before, self._refusal = self._refusal, _refusal(age or 0.0, depth, max_depth)
        if self._refusal and not before:
            logger.error("%s: %s Is the relay running, and Kafka up?", self._consequence, self._refusal)

    def start(self) -> None:
        """Sample once a second in a daemon thread. Call it after any fork: threads do not survive one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox-backpressure", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.sample()
            except Exception as error:
                # Keep the last sample: without the database, requests fail anyway.
                logger.warning("outbox not sampled: %s", first_line(error))
                connection.close()
            time.sleep(_SAMPLE_SECONDS)


def _refusal(age: float, depth: int, max_depth: int) -> str | None:
    if age > settings.OUTBOX_MAX_AGE_SECONDS:
        return f"Requests have waited {age:.0f} s to be published."
    if depth > max_depth:
        return f"More than {max_depth} requests are waiting to be published."
    return None


outbox_backpressure = OutboxBackpressure()
