"""Have the relay publish the message of one of its dead letters again."""

from __future__ import annotations

from django.db import connection

from ..consuming.dead_letters import event_type_of
from ..models import DeadLetter, OutboxMessage
from ..outbox.addresses import Address, present_address
from ..outbox.holds import send_again
from ..outbox.writing import OutboxRow, new_event_id
from .stored_messages import letter_message

_OUTBOX = OutboxMessage._meta.db_table
_ROW_OF = f"SELECT event_id FROM {_OUTBOX} WHERE id = %s AND topic = %s"
_WRITE_AGAIN = f"""
    INSERT INTO {_OUTBOX} (id, event_id, event_type, topic, key, payload, headers, shard)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""


def publish_again(letter: DeadLetter) -> str:
    """Publish a message that the broker refused once more, in the caller's transaction; returns a line about it.

    It keeps its id and headers. A pruned outbox row is written again under its number: the relay knows a letter by the
    number of its row, and opens it again if the broker refuses the message again.
    """
    with connection.cursor() as cursor:
        # The offset of a message that never reached its topic is the id of its row.
        cursor.execute(_ROW_OF, [letter.offset, letter.topic])
        found = cursor.fetchone()
    if found is not None:
        send_again([found[0]])
        return f"published again: outbox row {letter.offset}"
    message = letter_message(letter)
    event_type = event_type_of(message)
    # A copy of a dead letter stays with its topic; an event goes where its type goes now.
    is_event = message.header("x-original-topic") is None
    topic, key = (
        present_address(event_type, letter.topic, message.key, message.value)
        if is_event
        else Address(letter.topic, message.key)
    )
    row = OutboxRow(
        # The id of the row; the event keeps its own, which is in the headers.
        event_id=new_event_id(),
        event_type=event_type,
        topic=topic,
        key=key,
        payload=message.value,
        headers=bytes(letter.headers),
    )
    with connection.cursor() as cursor:
        cursor.execute(
            _WRITE_AGAIN,
            [letter.offset, row.event_id, row.event_type, row.topic, row.key, row.payload, row.headers, row.shard],
        )
    send_again([row.event_id])
    return f"published again: outbox row {letter.offset}, which was pruned"
