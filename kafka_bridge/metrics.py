"""Prometheus metrics of the relay, the outbox and the consumers, and their HTTP exposition.

A command serves its own metrics on ``METRICS_PORT``. The web server has several processes behind one port: there the
values are collected from the files of ``PROMETHEUS_MULTIPROC_DIR``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator

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

from .lag import lag_by_partition
from .open_letters import MOST_COUNTED, open_letters_sql
from .outbox.state import outbox_state

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# The relay: published rows, and the duration of a pass.
PUBLISHED = Counter("outbox_published_total", "Outbox rows acknowledged by the broker")
RELAY_SECONDS = Histogram("relay_pass_seconds", "From a relay's read to its position", buckets=_SECONDS)
# Consumers: handled messages, and the duration of one partition's batch.
CONSUMED = Counter("consumer_messages_total", "Messages handled, dead letters included", ["group"])
BATCH_SECONDS = Histogram("consumer_batch_seconds", "One batch of one partition", ["group"], buckets=_SECONDS)
# The duration of each batch times its messages: divided by the messages, the mean time from the begin of a message's
# handling to its commit.
MESSAGE_SECONDS = Counter("consumer_message_seconds_total", "Time of handling, summed over messages", ["group"])
# The lag of a group, for the partitions of this process.
LAG = Gauge("consumer_lag_messages", "Messages not handled yet", ["group", "topic", "partition"])
# 1 while a partition is retrying: it waits for a service or for a fix.
PAUSED = Gauge("consumer_paused", "1 while a partition is retrying", ["group", "topic", "partition"])
DEAD_LETTERS = Counter("dead_letters_total", "Dead letters written", ["group"])
# Only of groups with `log_only`.
PASSED_OVER = Counter("consumer_passed_over_total", "Messages that failed and were only logged", ["group"])
# Of the processes that send them: ``outcome`` is accepted or failed.
ALERT_NOTIFICATIONS = Counter("alert_notifications_total", "Calls of the alert webhook", ["outcome"])


class DatabaseCollector(Collector):
    """The outbox, open dead letters and open alerts, read from the database at each scrape."""

    _LETTERS = f"SELECT count(*) FROM ({open_letters_sql(str(MOST_COUNTED))}) AS letters"
    _ALERTS = "SELECT rule, severity FROM kafka_bridge_alert WHERE ended_at IS NULL ORDER BY rule LIMIT 1000"

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            outbox = outbox_state()
            with connection.cursor() as cursor:
                cursor.execute(self._LETTERS)
                (letters,) = cursor.fetchone() or (0,)
                cursor.execute(self._ALERTS)
                alerts = cursor.fetchall()
        except Exception as error:
            # The other metrics are needed most while the database is down.
            logger.warning("outbox not measured: %s", first_line(error))
            connection.close()
            return
        yield GaugeMetricFamily("outbox_waiting", "Rows to be published, counted up to 10,000", outbox.waiting)
        oldest_seconds = outbox.oldest_seconds or 0.0
        yield GaugeMetricFamily("outbox_age_seconds", "Age of the oldest row to be published", oldest_seconds)
        held = outbox.held_count
        yield GaugeMetricFamily("outbox_held", "Rows held for a topic or key, or to be sent again, up to 10,000", held)
        yield GaugeMetricFamily("dead_letters_open", "Dead letters neither replayed nor discarded, to 10,000", letters)
        opened = GaugeMetricFamily("alert_open", "1 for each open alert", labels=["rule", "severity"])
        for rule, severity in alerts:
            opened.add_metric([rule, severity], 1)
        yield opened


class LagCollector(Collector):
    """The lag of every group, also of those without a process, read from the database at each scrape."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, what = "consumer_lag_seconds", "Age of the oldest message that the group has not handled"
        family = GaugeMetricFamily(name, what, labels=["group", "topic", "partition"])
        try:
            for lag in lag_by_partition():
                family.add_metric([lag.place.group, lag.place.topic, str(lag.place.partition)], lag.milliseconds / 1000)
        except Exception as error:
            logger.warning("lag not measured: %s", first_line(error))
            connection.close()
            return
        yield family


def remove_partition(gauge: Gauge, groups: Iterable[str], topic: str, partition: int) -> None:
    """Remove the values of a partition that this process has no more, as far as there are any."""
    for group in groups:
        with contextlib.suppress(KeyError):
            gauge.remove(group, topic, str(partition))


def exposition() -> bytes:
    """Return the metrics of all processes of the web server, of the database and the lag, in Prometheus' format."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(DatabaseCollector())
    registry.register(LagCollector())
    return generate_latest(registry)


def serve(host: str, port: int) -> None:
    """Serve this process's metrics in a thread; port 0 means off. Raises CommandError if the port is taken."""
    if not port:
        return
    try:
        start_http_server(port, host)
    except OSError as error:
        raise CommandError(f"METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}; take another") from error
