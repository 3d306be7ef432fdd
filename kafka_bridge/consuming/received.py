"""Conversion of librdkafka's messages to ReceivedMessage. No content of a message makes it raise."""

from __future__ import annotations

import gc
from operator import methodcaller

from ..client import Message
from ..cloudevents import Headers
from ..registry import ReceivedMessage

# Replaces the name of a header that is not UTF-8, also on the dead-letter topic.
UNREADABLE_NAME = "x-unreadable-name"

# For a name that is not UTF-8 the library returns a result and sets an exception as well. In a plain method call the
# specialised bytecode of CPython 3.11 misses the exception after a few calls, and it is raised at some later line.
_read_headers = methodcaller("headers")


def received(message: Message, topic: str, partition: int) -> ReceivedMessage:
    """Convert a message of ``topic`` (without the prefix); ``message`` must not be an error.

    If a header cannot be read, ``unreadable`` says why, and ``headers`` holds what can be read.
    """
    offset = message.offset()
    assert offset is not None
    headers, unreadable = _headers(message)
    return ReceivedMessage(
        topic, partition, offset, message.timestamp()[1], message.key(), message.value(), headers, unreadable
    )


def _headers(message: Message) -> tuple[Headers, str]:
    """Return the headers, and what is wrong with them (empty if nothing)."""
    try:
        return tuple(_read_headers(message) or ()), ""
    except (SystemError, UnicodeError):
        return _readable_headers(message), "the name of a header is not UTF-8"


def _readable_headers(message: Message) -> Headers:
    """Return the headers of a message for which the library has raised once: later calls return its partial result.

    A name that could not be read is a NULL in its tuple: indexing the tuple would crash the interpreter. The garbage
    collector lists a tuple's items (last first) without the NULL.
    """
    try:
        pairs = _read_headers(message) or ()
    except (SystemError, UnicodeError):
        return ()
    headers = []
    for pair in reversed(gc.get_referents(pairs)):
        value, *name = gc.get_referents(pair)
        headers.append((name[0] if name else UNREADABLE_NAME, value))
    return tuple(headers)
