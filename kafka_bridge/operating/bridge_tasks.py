"""The housekeeping tasks of the bridge's own tables."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import connection, transaction

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable

from ..outbox.pruning import OutboxPruner
from ..registry import ConsumerGroup, former_topic_names, groups, prefixed, topics_with_history, unprefixed
from ..routes import Route
from .housekeeping import HousekeepingTask, register_task
from .row_pruning import BATCH_SIZE, PAUSE_SECONDS, prune_aged

# The broker looks for segments past their retention every five minutes, and clocks differ.
_BROKER_LATE = timedelta(days=1)
_NOTIFIED = "NOT EXISTS (SELECT FROM kafka_bridge_alertnotification AS left_over WHERE left_over.alert_id = aged.id)"

_WITHOUT_ITEMS = "NOT EXISTS (SELECT FROM kafka_bridge_redriveitem AS item WHERE item.redrive_id = aged.id)"
_CANCEL_FORGOTTEN = """
    UPDATE kafka_bridge_redrive SET state = 'cancelled', ended_at = statement_timestamp(), wants_preview = false
    WHERE started_at IS NULL AND ended_at IS NULL AND NOT starts_after_preview
      AND created_at < statement_timestamp() - %s * interval '1 second'
"""
_DELETE_ITEMS = """
    DELETE FROM kafka_bridge_redriveitem WHERE ctid = ANY(ARRAY(
        SELECT item.ctid FROM kafka_bridge_redrive AS aged
        JOIN kafka_bridge_redriveitem AS item ON item.redrive_id = aged.id
        WHERE aged.ended_at < statement_timestamp() - %s * interval '1 second'
        LIMIT %s
        FOR UPDATE OF item SKIP LOCKED
    ))
"""


def register() -> None:
    """Register the tasks; called once, when the app is ready."""
    for task in (
        HousekeepingTask("outbox", "OUTBOX_RETENTION_HOURS", _prune_outbox),
        HousekeepingTask("inbox", "INBOX_RETENTION_HOURS", _prune_inbox),
        HousekeepingTask("closed dead letters", "DEAD_LETTER_RETENTION_DAYS", _prune_dead_letters),
        HousekeepingTask("ended redrives", "DEAD_LETTER_RETENTION_DAYS", _prune_redrives),
        HousekeepingTask("heartbeats", "HEARTBEAT_RETENTION_HOURS", _prune_heartbeats),
        HousekeepingTask("ended alerts", "ALERT_RETENTION_DAYS", _prune_alerts),
        HousekeepingTask("past silences", "ALERT_RETENTION_DAYS", _prune_silences),
    ):
        register_task(task)


def inbox_retention(group: ConsumerGroup) -> timedelta | None:
    """Return how long the group's inbox rows are needed; None: for ever.

    A row is needed as long as its event may be delivered again: from a topic, whose messages live as long as the route
    or the broker says and a segment longer, or from the outbox, by ``republish_topic``. Raises ServiceUnavailable if
    Kafka does not say how long it keeps messages.
    """
    routes: list[Route] = [settings.KAFKA_ROUTES[event_type] for event_type in group.event_types]
    if any(route.retention_ms < 0 for route in routes):
        return None
    # A group reads an earlier topic again if a route names it again: Kafka forgets offsets of topics without readers.
    on_topics = _retention_of_topics([prefixed(topic) for topic in sorted(topics_with_history(group.event_types))])
    if on_topics is None:
        return None
    return max(
        timedelta(hours=settings.INBOX_RETENTION_HOURS),
        timedelta(hours=settings.OUTBOX_RETENTION_HOURS) + _BROKER_LATE,
        *(timedelta(milliseconds=route.retention_ms) + _BROKER_LATE for route in routes),
        on_topics + _BROKER_LATE,
    )


def _retention_of_topics(topics: list[str]) -> timedelta | None:
    # Imported here: the Kafka client costs every process memory, and only the housekeeper needs it for this.
    from ..client import KafkaError, topic_configs

    longest = 0
    for name, config in topic_configs(topics).items():
        if not isinstance(config, dict):
            if config.code() == KafkaError.UNKNOWN_TOPIC_OR_PART and unprefixed(name) in former_topic_names():
                continue
            raise ServiceUnavailable(f"Kafka does not say how long it keeps {name}: {config.str()}")
        if int(config["retention.ms"]) < 0 or "delete" not in config["cleanup.policy"]:
            return None
        # A segment is deleted with its youngest message.
        longest = max(longest, int(config["retention.ms"]) + int(config["segment.ms"]))
    return _from_milliseconds(longest)


def _from_milliseconds(milliseconds: int) -> timedelta | None:
    """Return None past a hundred years: Kafka takes numbers that no date can hold."""
    return None if milliseconds > _LONGEST_MS else timedelta(milliseconds=milliseconds)


_LONGEST_MS = 100 * 366 * 86_400_000


_outbox_pruner = OutboxPruner()


def _prune_outbox(stop: StopFlag) -> int:
    return _outbox_pruner.prune(timedelta(hours=settings.OUTBOX_RETENTION_HOURS), stop)


def _prune_inbox(stop: StopFlag) -> int:
    deleted = 0
    failure: ServiceUnavailable | None = None
    for group in groups().values():
        if stop:
            break
        # A group whose events have no route runs nowhere.
        if not group.inbox or not settings.KAFKA_ROUTES.keys() >= set(group.event_types):
            continue
        try:
            kept = inbox_retention(group)
        except ServiceUnavailable as error:
            # The topic of one group must not keep the inbox of the others from being pruned.
            failure = failure or error
            continue
        if kept is not None:
            deleted += prune_aged(
                "kafka_bridge_processedevent",
                "processed_at",
                kept,
                stop,
                condition="consumer_group = %s",
                values=[group.name],
            )
    if failure is not None:
        raise failure
    return deleted


def _prune_dead_letters(stop: StopFlag) -> int:
    return prune_aged("kafka_bridge_deadletter", "closed_at", timedelta(days=settings.DEAD_LETTER_RETENTION_DAYS), stop)


def _prune_redrives(stop: StopFlag) -> int:
    kept = timedelta(days=settings.DEAD_LETTER_RETENTION_DAYS)
    with transaction.atomic():
        limit_lock_waits()
        with connection.cursor() as cursor:
            # Not deleted at once: an operator may be starting it.
            cursor.execute(_CANCEL_FORGOTTEN, [kept.total_seconds()])
    # The items first, in batches: a redrive has up to a hundred thousand.
    deleted = 0
    while not stop:
        with transaction.atomic():
            limit_lock_waits()
            with connection.cursor() as cursor:
                cursor.execute(_DELETE_ITEMS, [kept.total_seconds(), BATCH_SIZE])
                batch = cursor.rowcount
        deleted += batch
        if batch < BATCH_SIZE:
            break
        stop.wait(PAUSE_SECONDS)
    return deleted + prune_aged("kafka_bridge_redrive", "ended_at", kept, stop, condition=_WITHOUT_ITEMS)


def _prune_heartbeats(stop: StopFlag) -> int:
    kept = timedelta(hours=settings.HEARTBEAT_RETENTION_HOURS)
    return prune_aged("kafka_bridge_processheartbeat", "seen_at", kept, stop)


def _prune_silences(stop: StopFlag) -> int:
    return prune_aged("kafka_bridge_alertsilence", "until", timedelta(days=settings.ALERT_RETENTION_DAYS), stop)


def _prune_alerts(stop: StopFlag) -> int:
    # Ended alerts of which a notification is left wait for it.
    kept = timedelta(days=settings.ALERT_RETENTION_DAYS)
    return prune_aged("kafka_bridge_alert", "ended_at", kept, stop, condition=_NOTIFIED)
