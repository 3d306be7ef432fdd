"""Messages about orders: encoding of events, and decoding of messages."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import msgspec

from kafka_bridge.errors import PoisonMessage
from kafka_bridge.outbox.writing import Message
from kafka_bridge.registry import ReceivedMessage, decode_body, event_types_of, former_event_types_of, traceparent_of

from .events import OrderCancelled, OrderCompleted, OrderEvent
from .policy import MAX_WON

ORDER_COMPLETED = "order.completed.v1"
ORDER_CANCELLED = "order.cancelled.v1"

_TYPES: dict[type[OrderEvent], str] = {OrderCompleted: ORDER_COMPLETED, OrderCancelled: ORDER_CANCELLED}
_DECODERS: dict[str, msgspec.json.Decoder[OrderEvent]] = {
    type_name: msgspec.json.Decoder(kind) for kind, type_name in _TYPES.items()
}


class OrderTask(NamedTuple):
    """An order event read from its topic. ``event_id`` is its key in the inbox."""

    event_id: UUID
    event: OrderEvent
    body: bytes
    traceparent: str


def message_of(event: OrderEvent, *, event_id: UUID, traceparent: str = "") -> Message:
    """Build the outbox message of ``event``."""
    return Message(_TYPES[type(event)], event, event_id=event_id, traceparent=traceparent)


def read_order_task(message: ReceivedMessage) -> OrderTask:
    """Decode the event in ``message``; without the header ``ce_type`` the topic determines its type.

    Raises PoisonMessage.
    """
    header = message.header("ce_type")
    on_topic = event_types_of(message.topic) or former_event_types_of(message.topic)
    known = {header.decode()} if header else on_topic & _DECODERS.keys()
    if len(known) != 1:
        raise PoisonMessage(f"the topic carries {', '.join(sorted(known))}, and the message has no ce_type")
    event_type = known.pop()
    event = decode_body(message, _DECODERS[event_type], event_type)
    # A larger amount fits its bigint column, but sums with it overflow and fail every order of the same minute.
    if isinstance(event, OrderCompleted) and max(event.total_amount, event.pay_amount) > MAX_WON:
        raise PoisonMessage(f"an order is at most {MAX_WON} won")
    assert message.value is not None
    return OrderTask(message.inbox_id, event, message.value, traceparent_of(message))
