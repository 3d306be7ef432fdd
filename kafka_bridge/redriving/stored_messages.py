"""The message of a dead letter, as its consumer group received it."""

from __future__ import annotations

from ..cloudevents import UNREADABLE_HEADERS, decode_headers
from ..consuming.received import UNREADABLE_NAME
from ..models import DeadLetter
from ..registry import ReceivedMessage


def letter_message(letter: DeadLetter) -> ReceivedMessage:
    """Return the original message: position, timestamp, key, payload and headers.

    What was unreadable when it was received is unreadable again.
    """
    headers = decode_headers(bytes(letter.headers))
    names = {name for name, _ in headers}
    unreadable = ""
    if UNREADABLE_NAME in names:
        unreadable = "the name of a header is not UTF-8"
    elif UNREADABLE_HEADERS in names:
        unreadable = "the stored headers cannot be decoded"
    return ReceivedMessage(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        timestamp=letter.message_timestamp,
        key=None if letter.key is None else bytes(letter.key),
        value=None if letter.payload is None else bytes(letter.payload),
        headers=headers,
        unreadable=unreadable,
    )
