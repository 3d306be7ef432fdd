"""Have the relay publish the message of one of its dead letters again."""

from __future__ import annotations

from django.db import connection

from ..consuming.dead_letters import event_type_of
from ..models import DeadLetter
from ..outbox.holds import send_again
from ..outbox.writing import OutboxRow, insert_rows, new_event_id
from .stored_messages import letter_message

_ROW_OF = "SELECT event_id FROM kafka_bridge_outboxmessage WHERE id = %s AND topic = %s"


def publish_again(letter: DeadLetter) -> str:
    """Publish a message that the broker refused once more, in the caller's transaction; returns a line about it.

    It keeps its id and headers. A pruned outbox row is written again. If the broker refuses the message again, the
    relay opens the letter again.
    """
    with connection.cursor() as cursor:
        # The offset of a message that never reached its topic is the id of its row.
        cursor.execute(_ROW_OF, [letter.offset, letter.topic])
        found = cursor.fetchone()
    if found is not None:
        send_again([found[0]])
        return f"published again: outbox row {letter.offset}"
    message = letter_message(letter)
    insert_rows(
        [
            OutboxRow(
                # The id of the row; the event keeps its own, which is in the headers.
                event_id=new_event_id(),
                event_type=event_type_of(message),
                topic=letter.topic,
                key=message.key,
                payload=message.value,
                headers=bytes(letter.headers),
            )
        ]
    )
    return "published again: a new outbox row, the first one was pruned"
