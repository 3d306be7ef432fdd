"""Rows for the outbox."""

from __future__ import annotations

from django.db import transaction

from kafka_bridge.outbox.writing import Message, publish

EVENT = "order.completed.v1"
TOPIC = "order-completed"


def publish_orders(order_ids: list[int], *, text: str = "") -> None:
    """One event per order id, in order, in one transaction of its own; the order id is the key."""
    with transaction.atomic():
        publish(
            Message(EVENT, {"orderId": order_id, "text": text, "number": n}) for n, order_id in enumerate(order_ids)
        )


def publish_numbers(numbers: range, *, key: int = 1) -> None:
    """Events of one key that carry their number, each committed on its own."""
    for number in numbers:
        with transaction.atomic():
            publish([Message(EVENT, {"orderId": key, "number": number})])
