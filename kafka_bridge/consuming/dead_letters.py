"""Writing of dead letters: a row with the original bytes, and a message for the dead-letter topic."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence

from django.conf import settings
from django.db import connection, transaction

from common.postgres.texts import storable
from common.processes.lifecycle import first_line

from .. import metrics
from ..cloudevents import Headers, encode_headers
from ..outbox.writing import OutboxRow, insert_rows, new_event_id
from ..registry import ReceivedMessage, Rejected, prefixed
from ..routes import Route

logger = logging.getLogger(__name__)

# The `consumer_group` of dead letters that the relay writes.
RELAY = "relay"
# That of messages that others put on a dead-letter topic, see `dead_letter_monitor`.
FOREIGN = "foreign"
_HEADER_BYTES = 1000
# The last frames say most.
TRACEBACK_CHARACTERS = 8000

_INSERT = """
    INSERT INTO kafka_bridge_deadletter
        (consumer_group, topic, partition, "offset", message_timestamp, event_type, event_id, key, payload, headers,
         error_class, error_message, traceback)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT ON CONSTRAINT dead_letter_once DO NOTHING
"""
_POSITION = """
    consumer_group = %s AND topic = %s AND partition = %s AND "offset" = %s AND message_timestamp = %s
"""
# A letter that is being replayed is skipped: a consumer must not wait for it.
_SEEN_AGAIN = f"""
    UPDATE kafka_bridge_deadletter SET last_seen_at = statement_timestamp() WHERE id = (
        SELECT id FROM kafka_bridge_deadletter WHERE {_POSITION} AND closed_at IS NULL FOR NO KEY UPDATE SKIP LOCKED
    )
"""
# A replay only asks the relay to publish the row again: that the broker refuses it again is known here.
_REFUSED_AGAIN = f"""
    UPDATE kafka_bridge_deadletter
    SET closed_at = NULL, outcome = '', last_seen_at = statement_timestamp(), last_error = %s
    WHERE {_POSITION} AND outcome = 'replayed'
"""


def write_dead_letters(
    group_name: str, group_id: str, rejected: Sequence[Rejected], *, publish: bool = True
) -> list[Rejected]:
    """Write dead letters of a consumer group within the caller's transaction; returns those that are new.

    With ``publish`` each new one also becomes an outbox row for its dead-letter topic: original key and bytes, original
    headers and the ``x-original-*``, ``x-consumer-group`` and ``x-error-*`` headers. A message that was redelivered is
    the same letter; one of the relay that was replayed and is refused again is open again.
    """
    new = [item for item in rejected if _insert(group_name, item)]
    if publish:
        insert_rows([row for item in new if (row := _dlt_row(group_id, item)) is not None])
    for item in new:
        # Counted once it is committed: alarms are judged by it.
        transaction.on_commit(metrics.DEAD_LETTERS.labels(group_name).inc, robust=True)
        logger.error("%s: dead letter %s: %s", group_name, item.message, first_line(item.error))
    return new


def event_type_of(message: ReceivedMessage) -> str:
    """Return the event type of the message's header, empty if none, cleaned for a text column."""
    raw = message.header("ce_type") or b""
    return raw[:100].decode("utf-8", "replace").replace("\0", "")


def _insert(group_name: str, rejected: Rejected) -> bool:
    message, error = rejected.message, rejected.error
    position: list[str | int] = [group_name, message.topic, message.partition, message.offset, message.timestamp]
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT,
            [
                *position, event_type_of(message), message.event_id, message.key, message.value,
                encode_headers(message.headers), error_class(error), error_text(error), _traceback(error),
            ],
        )  # fmt: skip
        if is_new := bool(cursor.rowcount):
            return is_new
        cursor.execute(_SEEN_AGAIN, position)
        if group_name == RELAY:
            cursor.execute(_REFUSED_AGAIN, [describe_error(error), *position])
    return False


def _dlt_row(group_id: str, rejected: Rejected) -> OutboxRow | None:
    """Return the copy for the dead-letter topic; None without such a topic: then the letter is only in PostgreSQL."""
    message = rejected.message
    event_type = event_type_of(message)
    topic = dead_letter_topic(message.topic, event_type)
    if topic is None:
        logger.warning("dead letter %s has no copy: KAFKA_ROUTES has neither its topic nor its type", message)
        return None
    extra: Headers = (
        ("x-original-topic", prefixed(message.topic).encode()),
        ("x-original-partition", str(message.partition).encode()),
        ("x-original-offset", str(message.offset).encode()),
        ("x-consumer-group", group_id.encode()),
        ("x-error-class", error_class(rejected.error).encode()),
        ("x-error-message", error_text(rejected.error).encode()[:_HEADER_BYTES]),
    )
    return OutboxRow(
        event_id=new_event_id(),
        event_type=event_type,
        topic=topic,
        key=message.key,
        payload=message.value,
        headers=encode_headers((*message.headers, *extra)),
    )


def dead_letter_topic(topic: str, event_type: str) -> str | None:
    """Return the dead-letter topic of ``topic``: by the route of the event type, else by any route of that topic.

    Of a topic that no route names any more, the one that the event type has now; None if the type has no route either.
    """
    routes: Mapping[str, Route] = settings.KAFKA_ROUTES
    own = routes.get(event_type)
    if own is not None and own.topic == topic:
        return own.dead_letter_topic
    of_topic = next((route for route in routes.values() if route.topic == topic), own)
    return None if of_topic is None else of_topic.dead_letter_topic


def error_class(error: BaseException) -> str:
    """Return the name of the class of ``error``, as a column holds it."""
    return type(error).__name__[:200]


def error_text(error: BaseException) -> str:
    """Return the text of ``error`` for a text column: at most 2000 characters, without NUL."""
    return storable(str(error))[:2000]


def describe_error(error: BaseException) -> str:
    """Return class and text of ``error`` for a text column."""
    return f"{error_class(error)}: {error_text(error)}"


def _traceback(error: BaseException) -> str:
    if error.__traceback__ is None:
        return ""
    return storable("".join(traceback.format_exception(error)))[-TRACEBACK_CHARACTERS:]
