"""Whether the outbox is so far behind that taking more in would be a promise nobody can keep."""

from __future__ import annotations

import logging
import threading
import time

from django.conf import settings
from django.db import connection

from common.processes.lifecycle import first_line

logger = logging.getLogger(__name__)

_SAMPLE_SECONDS = 1.0

_OLDEST = """
    SELECT extract(epoch FROM statement_timestamp() - created_at)::float,
           (SELECT last_value FROM kafka_bridge_outboxmessage_id_seq) - id
    FROM kafka_bridge_outboxmessage WHERE published_at IS NULL
    ORDER BY id LIMIT 1
"""
_COUNT = "SELECT count(*) FROM (SELECT FROM kafka_bridge_outboxmessage WHERE published_at IS NULL LIMIT %s) AS waiting"


class OutboxBackpressure:
    """The outbox's age and depth, sampled outside requests: asking costs a request nothing."""

    def __init__(self, *, share: float = 1.0, told_as: str = "requests are refused") -> None:
        """``share`` of ``OUTBOX_MAX_DEPTH`` counts as too deep; ``told_as`` begins the line that tells of it."""
        self._share = share
        self._told_as = told_as
        self._refusal: str | None = None
        self._thread: threading.Thread | None = None

    def refusal(self) -> str | None:
        """Why no more is taken in, as a sentence; None if it is."""
        return self._refusal

    def sample(self) -> None:
        """Look once. Raises what the database raises."""
        most = int(settings.OUTBOX_MAX_DEPTH * self._share)
        with connection.cursor() as cursor:
            cursor.execute(_OLDEST)
            age, span = cursor.fetchone() or (0.0, 0)
            depth = 0
            # Counting a long backlog takes long; ids since the oldest waiting row are never fewer than waiting rows.
            if span >= most:
                cursor.execute(_COUNT, [most + 1])
                (depth,) = cursor.fetchone() or (0,)
        before, self._refusal = self._refusal, _refusal(age, depth, most)
        if self._refusal and not before:
            logger.error("%s: %s Is the relay running, and Kafka up?", self._told_as, self._refusal)

    def start(self) -> None:
        """Sample once a second in a thread of this process. Call it after any fork."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox-pressure", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.sample()
            except Exception as error:
                # The last sample stays: a database that is away refuses requests by itself.
                logger.warning("outbox not sampled: %s", first_line(error))
                connection.close()
            time.sleep(_SAMPLE_SECONDS)


def _refusal(age: float, depth: int, most: int) -> str | None:
    if age > settings.OUTBOX_MAX_AGE_SECONDS:
        return f"Requests have waited for {age:.0f} s to be passed on."
    if depth > most:
        return f"More than {most} requests wait to be passed on."
    return None


outbox_backpressure = OutboxBackpressure()
