"""A message of the client library as the bridge knows it. Nothing that a message carries makes this raise."""

from __future__ import annotations

import gc
from operator import methodcaller

from ..client import Message
from ..cloudevents import Headers
from ..registry import ReceivedMessage, unprefixed

# Stands for the name of a header that cannot be read, also on the dead-letter topic.
UNREADABLE_NAME = "x-unreadable-name"

# For a name that is not UTF-8 the library returns its result and sets an error beside it. Written as a method call,
# the specialised bytecode of CPython 3.11 misses the error after a few calls: it comes up at some later line.
_read_headers = methodcaller("headers")


def received(message: Message, topic: str, partition: int) -> ReceivedMessage:
    """The message, which is at a place of a topic (named with the prefix) and no error.

    With headers that cannot be read it is marked ``unreadable`` and has all that can be.
    """
    offset = message.offset()
    assert offset is not None
    headers, unreadable = _headers(message)
    return ReceivedMessage(
        topic=unprefixed(topic),
        partition=partition,
        offset=offset,
        timestamp=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=headers,
        unreadable=unreadable,
    )


def _headers(message: Message) -> tuple[Headers, str]:
    """The headers, and what is wrong with them; empty if nothing is."""
    try:
        return tuple(_read_headers(message) or ()), ""
    except (SystemError, UnicodeError):
        return _readable_headers(message), "the name of a header is not UTF-8"


def _readable_headers(message: Message) -> Headers:
    """The headers of a message of which the library has raised once: from then on it returns what it made of them.

    A name that it could not read is missing in its pair without a trace: to index the pair would crash the interpreter,
    the garbage collector's view (last item first) leaves the gap out.
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
