"""Writing of dead letters: a row with the original bytes, and a message for the dead-letter topic."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.conf import settings
from django.db import connection, transaction

from common.processes.lifecycle import first_line

from .. import metrics
from ..cloudevents import Headers, encode_headers
from ..outbox.writing import OutboxRow, insert_rows, new_event_id
from ..registry import Rejected, prefixed

logger = logging.getLogger(__name__)

# The `consumer_group` of dead letters that the relay writes.
RELAY = "relay"
# That of messages that others put on a dead-letter topic, see `dead_letter_monitor`.
FOREIGN = "foreign"
_HEADER_BYTES = 1000

_INSERT = """
    INSERT INTO kafka_bridge_deadletter
        (consumer_group, topic, partition, "offset", message_timestamp, event_type, event_id, key, payload, headers,
         error_class, error_message)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT ON CONSTRAINT dead_letter_once DO NOTHING
"""


def write_dead_letters(
    group_name: str, group_id: str, rejected: Sequence[Rejected], *, publish: bool = True
) -> list[Rejected]:
    """Write dead letters of a consumer group within the caller's transaction; returns those that are new.

    With ``publish`` each new one also becomes an outbox row for its dead-letter topic: original key and bytes, original
    headers and the ``x-original-*``, ``x-consumer-group`` and ``x-error-*`` headers.
    """
    new = [item for item in rejected if _insert(group_name, item)]
    if publish:
        insert_rows([_dlt_row(group_id, item) for item in new])
    for item in new:
        # Counted once it is committed: alarms are judged by it.
        transaction.on_commit(metrics.DEAD_LETTERS.labels(group_name).inc, robust=True)
        logger.error("%s: dead letter %s: %s", group_name, item.message, first_line(item.error))
    return new


def event_type_of(rejected: Rejected) -> str:
    """Return the event type of the message's header, empty if none, cleaned for a text column."""
    raw = rejected.message.header("ce_type") or b""
    return raw[:100].decode("utf-8", "replace").replace("\0", "")


def _insert(group_name: str, rejected: Rejected) -> bool:
    message = rejected.message
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT,
            [
                group_name, message.topic, message.partition, message.offset, message.timestamp,
                event_type_of(rejected), message.event_id, message.key, message.value,
                encode_headers(message.headers), type(rejected.error).__name__[:200], _text(rejected.error),
            ],
        )  # fmt: skip
        return bool(cursor.rowcount)


def _dlt_row(group_id: str, rejected: Rejected) -> OutboxRow:
    message = rejected.message
    event_type = event_type_of(rejected)
    extra: Headers = (
        ("x-original-topic", prefixed(message.topic).encode()),
        ("x-original-partition", str(message.partition).encode()),
        ("x-original-offset", str(message.offset).encode()),
        ("x-consumer-group", group_id.encode()),
        ("x-error-class", type(rejected.error).__name__.encode()),
        ("x-error-message", _text(rejected.error).encode()[:_HEADER_BYTES]),
    )
    return OutboxRow(
        event_id=new_event_id(),
        event_type=event_type,
        topic=dead_letter_topic(message.topic, event_type),
        key=message.key,
        payload=message.value,
        headers=encode_headers((*message.headers, *extra)),
    )


def dead_letter_topic(topic: str, event_type: str) -> str:
    """Return the dead-letter topic of ``topic``: by the route of the event type, else by any route of that topic."""
    routes = settings.KAFKA_ROUTES
    route = routes.get(event_type)
    if route is None or route.topic != topic:
        route = next(route for route in routes.values() if route.topic == topic)
    return str(route.dead_letter_topic)


def _text(error: BaseException) -> str:
    return str(error).encode("utf-8", "replace").decode().replace("\0", "\\0")[:2000]
