"""What a change of routes leaves behind: rows, requests and events that stand on topics of earlier routes.

Nothing reads such a topic under the present settings. So the topics are drained under the earlier settings first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from common.postgres import arrays

from ..consuming.dead_letters import RELAY
from ..outbox.published import unpublished_sql
from ..registry import ConsumerGroup, groups, guarded_event_types, prefixed, retained_ids, transports
from ..routes import Route, topics_of

_CHUNK = 10_000

_HAS_OUTBOX = "SELECT to_regclass('kafka_bridge_outboxmessage') IS NOT NULL"
# Events that do not stand where the route of their type says. Reads the whole outbox once.
_MOVED = """
    SELECT event_type, topic FROM kafka_bridge_outboxmessage AS message
    WHERE headers IS NULL AND event_type = ANY(%(types)s::text[]) AND topic <> ALL(%(transports)s::text[])
      AND NOT EXISTS (
          SELECT FROM unnest(%(types)s::text[], %(topics)s::text[]) AS route (event_type, topic)
          WHERE route.event_type = message.event_type AND route.topic = message.topic
      )
    GROUP BY event_type, topic ORDER BY event_type, topic
"""
_UNPUBLISHED = f"""
    SELECT message.event_type, message.topic, message.headers IS NULL, count(*)
    FROM ({unpublished_sql()}) AS unpublished JOIN kafka_bridge_outboxmessage AS message USING (id)
    GROUP BY 1, 2, 3
"""
_IDS = """
    SELECT id, event_id FROM kafka_bridge_outboxmessage
    WHERE id > %s AND event_type = %s AND topic = %s AND headers IS NULL ORDER BY id LIMIT %s
"""
_UNHANDLED = """
    WITH event AS (
        SELECT message.id, processed.event_id IS NOT NULL OR message.event_id IN (
            SELECT event_id FROM kafka_bridge_deadletter
            WHERE consumer_group IN (%(group)s, %(relay)s) AND event_id IS NOT NULL
        ) AS is_handled
        FROM kafka_bridge_outboxmessage AS message
        LEFT JOIN kafka_bridge_processedevent AS processed
            ON processed.consumer_group = %(group)s AND processed.event_id = message.event_id
        WHERE message.event_type = %(type)s AND message.topic = %(topic)s AND message.headers IS NULL
    )
    SELECT count(*) FROM event WHERE NOT is_handled AND id > (SELECT min(id) FROM event WHERE is_handled)
"""


class Moved(NamedTuple):
    """An event type and a topic (without the prefix) that has events of it in the outbox, and is not its topic now."""

    event_type: str
    topic: str


def moved_events() -> list[Moved]:
    """Return the topics of earlier routes by the events that the outbox still has; none before the first migration."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    values = {
        "types": arrays.texts(list(routes)),
        "topics": arrays.texts([route.topic for route in routes.values()]),
        "transports": arrays.texts(sorted(transports())),
    }
    with connection.cursor() as cursor:
        cursor.execute(_HAS_OUTBOX)
        if not cursor.fetchone()[0]:
            return []
        cursor.execute(_MOVED, values)
        return [Moved(*row) for row in cursor.fetchall()]


def undrained_lines(moved: Sequence[Moved]) -> Iterator[str]:
    """Yield a line for each topic of earlier routes with work left: rows, undecided requests, unhandled events."""
    for (event_type, topic), number in sorted(_unpublished().items()):
        yield f"{prefixed(topic)}: {_events(number, event_type)} not published yet"
    guarded = guarded_event_types()
    for event_type, topic in moved:
        if event_type in guarded and (number := _undecided(event_type, topic)):
            yield f"{prefixed(topic)}: {_events(number, event_type)} not decided yet"
    for group in sorted(groups().values(), key=lambda group: group.name):
        for event_type, topic in moved:
            if not group.inbox or event_type not in group.event_types:
                continue
            if number := _unhandled(group, event_type, topic):
                yield f"{prefixed(topic)}: {_events(number, event_type)} not handled yet by the group {group.name}"


def unnamed_topics(moved: Sequence[Moved]) -> str | None:
    """Return the ``KAFKA_FORMER_TOPICS`` that has all topics of ``moved``; None if the setting has them."""
    named: Mapping[str, tuple[str, ...]] = settings.KAFKA_FORMER_TOPICS
    wanted = {event_type: list(topics) for event_type, topics in named.items()}
    for event_type, topic in moved:
        if topic not in wanted.setdefault(event_type, []):
            wanted[event_type].append(topic)
    is_complete = all(topic in named.get(event_type, ()) for event_type, topic in moved)
    return None if is_complete else json.dumps(wanted)


def _events(number: int, event_type: str) -> str:
    return f"{number} {event_type or 'messages without a type'}"


def _unpublished() -> Counter[Moved]:
    """Count the unpublished rows whose topic is not one of the present routes, or not that of their type."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    present = topics_of(routes)
    left = Counter[Moved]()
    with connection.cursor() as cursor:
        cursor.execute(_HAS_OUTBOX)
        if not cursor.fetchone()[0]:
            return left
        cursor.execute(_UNPUBLISHED)
        for event_type, topic, is_event, number in cursor.fetchall():
            route = routes.get(event_type)
            if topic not in present or (is_event and route is not None and route.topic != topic):
                left[Moved(event_type, topic)] += number
    return left


def _undecided(event_type: str, topic: str) -> int:
    number, after = 0, 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_IDS, [after, event_type, topic, _CHUNK])
            rows = cursor.fetchall()
        if not rows:
            return number
        number += len(retained_ids(event_type, [event_id for _, event_id in rows]))
        after = rows[-1][0]


def _unhandled(group: ConsumerGroup, event_type: str, topic: str) -> int:
    """Count what a group with an inbox has left of a topic, from the first event on that it handled there.

    So a group that never read the topic, or began later, has nothing left. A skipped event is in the inbox too.
    """
    values = {"group": group.name, "relay": RELAY, "type": event_type, "topic": topic}
    with connection.cursor() as cursor:
        cursor.execute(_UNHANDLED, values)
        (number,) = cursor.fetchone() or (0,)
    return int(number)
