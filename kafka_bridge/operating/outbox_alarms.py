"""Alarms about the outbox: rows that no relay sends, and rows that are held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings

from common.postgres.limited_reads import limited_read

from ..outbox.holds import HELD_TOPICS
from ..outbox.published import waiting_sql
from ..registry import prefixed
from .alerts import alert_rule, open_rules
from .evaluation import Condition, register_judge

# Opened and ended by the relay.
TOPIC = alert_rule("topic", "critical")
OUTBOX_AGE = alert_rule("outbox-age", "critical", settings=("ALERT_OUTBOX_SECONDS",))
HELD = alert_rule("held", "warning", settings=("ALERT_HELD_SECONDS",))

# A row that was inserted early in a long transaction is old when it becomes visible: a relay gets this long for it.
_SECONDS_TO_SEND = 10.0
_OLDEST = f"""
    SELECT extract(epoch FROM statement_timestamp() - min(created_at))::float FROM ({waiting_sql("1")}) AS waiting
"""
# An alert for each of so many holds.
_MOST_HOLDS = 50
_HOLDS = f"""
    SELECT topic, key, reason, date_trunc('second', created_at AT TIME ZONE 'UTC')::text FROM kafka_bridge_outboxhold
    WHERE created_at <= statement_timestamp() - %(seconds)s * interval '1 second' ORDER BY id LIMIT {_MOST_HOLDS}
"""
# Rows held for their key are named by the hold of the key.
_HELD_TOPICS = f"""
    SELECT held_topic.topic, date_trunc('second', oldest.created_at AT TIME ZONE 'UTC')::text
    FROM ({HELD_TOPICS}) AS held_topic CROSS JOIN LATERAL (
        SELECT min(created_at) AS created_at FROM (
            SELECT reason, created_at FROM kafka_bridge_heldmessage
            WHERE topic = held_topic.topic ORDER BY message_id LIMIT 1000
        ) AS first_of_topic
        WHERE reason <> 'key'
    ) AS oldest
    WHERE oldest.created_at <= statement_timestamp() - %(seconds)s * interval '1 second'
    ORDER BY held_topic.topic
"""


def register() -> None:
    """Register the judges; called once, when the app is ready."""
    register_judge([OUTBOX_AGE], judge_outbox_age)
    register_judge([HELD], judge_held)


def judge_outbox_age() -> Iterator[Condition]:
    """Yield one condition if a row waits for a relay for more than ``ALERT_OUTBOX_SECONDS``; held rows do not count."""
    most = settings.ALERT_OUTBOX_SECONDS
    if not most:
        return
    ((age,),) = limited_read(_OLDEST)
    if age is not None and age > most:
        yield Condition(
            OUTBOX_AGE,
            f"an outbox row has waited {age:.0f} s to be published, more than {most} s:"
            " no relay is running, or Kafka is away",
            for_seconds=_SECONDS_TO_SEND,
        )


def judge_held() -> Iterator[Condition]:
    """Yield the keys that an operator holds, and the topics with held rows of which the relay's alert says nothing.

    Both after ``ALERT_HELD_SECONDS``. A relay that runs opens the alert of a held topic within seconds.
    """
    values = {"seconds": settings.ALERT_HELD_SECONDS}
    if not values["seconds"]:
        return
    by_topic: dict[str, str] = {}
    for topic, key, reason, since in limited_read(_HOLDS, values):
        if key is None:
            by_topic[topic] = f"topic {topic} is held by an operator since {since} UTC ({reason})"
        else:
            text = _text(key)
            summary = f"key {text} of topic {topic} is held by an operator since {since} UTC ({reason})"
            yield Condition(HELD, summary, f"{topic}-{text}")
    for topic, since in limited_read(_HELD_TOPICS, values):
        by_topic.setdefault(topic, f"rows of topic {topic} are held since {since} UTC")
    named = open_rules() if by_topic else set()
    for topic, summary in by_topic.items():
        if TOPIC.of(prefixed(topic)) not in named:
            yield Condition(HELD, f"{summary}, and no relay reports it: is a relay running?", topic)


def _text(key: Any) -> str:
    return bytes(key).decode("utf-8", "backslashreplace").replace("\0", "\\0")
