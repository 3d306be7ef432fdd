"""What Prometheus can ask of every process; the names stand here and nowhere else.

A command serves its own on ``METRICS_PORT``. The web server has several processes behind one port: there the values
are gathered through the files of ``PROMETHEUS_MULTIPROC_DIR``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from django.core.management.base import CommandError
from django.db import connection
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from common.processes.lifecycle import first_line

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Rows that the relay has published, and how long one of its passes takes.
PUBLISHED = Counter("outbox_published_total", "Outbox rows acknowledged by the broker")
RELAY_SECONDS = Histogram("relay_pass_seconds", "From a relay's read to its mark", buckets=_SECONDS)
# Messages that a group has brought to their effect, and how long a partition's batch takes.
CONSUMED = Counter("consumer_messages_total", "Messages handled, dead letters included", ["group"])
BATCH_SECONDS = Histogram("consumer_batch_seconds", "One batch of one partition", ["group"], buckets=_SECONDS)
# How far behind a group is, by the partitions of this process.
LAG = Gauge("consumer_lag_messages", "Messages not handled yet", ["group", "topic", "partition"])
# 1 while a partition waits for a service or for somebody to mend a fault.
PAUSED = Gauge("consumer_paused", "1 while a partition waits", ["group", "topic", "partition"])
DEAD_LETTERS = Counter("dead_letters_total", "Messages buried", ["group"])
# Messages of groups whose failures are only logged.
PASSED_OVER = Counter("consumer_passed_over_total", "Messages that failed and were only logged", ["group"])


class OutboxCollector(Collector):
    """The outbox's depth and age, asked of the database when somebody scrapes."""

    _QUERY = """
        SELECT count(*), coalesce(extract(epoch FROM statement_timestamp() - min(created_at)), 0)::float
        FROM (
            SELECT created_at FROM kafka_bridge_outboxmessage WHERE published_at IS NULL ORDER BY id LIMIT 100000
        ) AS waiting
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with connection.cursor() as cursor:
                cursor.execute(self._QUERY)
                depth, age = cursor.fetchone() or (0, 0.0)
        except Exception as error:
            # The other figures are worth having most when the database is away.
            logger.warning("outbox not measured: %s", first_line(error))
            connection.close()
            return
        yield GaugeMetricFamily("outbox_waiting", "Rows to be published, counted up to 100,000", depth)
        yield GaugeMetricFamily("outbox_age_seconds", "Age of the oldest row to be published", age)


def exposition() -> bytes:
    """The text that Prometheus scrapes from the web server: all its processes, and the outbox."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(OutboxCollector())
    return generate_latest(registry)


def serve(host: str, port: int) -> None:
    """Serve this process's figures in a thread; port 0 is off. Raises CommandError if the port is taken."""
    if not port:
        return
    try:
        start_http_server(port, host)
    except OSError as error:
        raise CommandError(f"METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}; take another") from error
