"""Orders as they lie in the tables once they are paid or cancelled, and the events that told of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from uuid import uuid4

from kafka_bridge.cloudevents import encode_body
from kafka_bridge.outbox.writing import Message
from kafka_bridge.registry import ReceivedMessage
from orders.events import Item, OrderCancelled, OrderCompleted
from orders.messages import ORDER_CANCELLED, ORDER_COMPLETED, message_of
from orders.models import Order, OrderLine, Product

_TOPICS = {ORDER_COMPLETED: "order-completed", ORDER_CANCELLED: "order-cancelled"}
_offsets = count()

PRICE = 1000


def make_product(name: str) -> Product:
    return Product.objects.create(name=name, price=PRICE)


def make_paid_order(
    quantities: Mapping[Product, int], *, paid_at: datetime | None = None, cancelled_at: datetime | None = None
) -> Order:
    """An order of so many of each product that was paid, and cancelled afterwards if ``cancelled_at`` is given."""
    paid_at = paid_at or datetime.now(UTC)
    total = PRICE * sum(quantities.values())
    order = Order.objects.create(
        user_id=7,
        status=Order.Status.CANCELLED if cancelled_at else Order.Status.PAID,
        total_amount=total,
        pay_amount=total,
        expires_at=paid_at,
        paid_at=paid_at,
        cancelled_at=cancelled_at,
        completed_event_id=uuid4(),
        cancelled_event_id=uuid4() if cancelled_at else None,
    )
    OrderLine.objects.bulk_create(
        OrderLine(order=order, product=product, name=product.name, unit_price=PRICE, quantity=quantity)
        for product, quantity in quantities.items()
    )
    return order


def completed(order: Order) -> ReceivedMessage:
    """The message that tells that ``order`` was paid."""
    return _received(completed_event(order))


def cancelled(order: Order) -> ReceivedMessage:
    """The message that tells that ``order``, which had been paid, was cancelled."""
    return _received(cancelled_event(order))


def completed_event(order: Order) -> Message:
    """For ``kafka_bridge.outbox.writing.publish``."""
    assert order.paid_at is not None
    assert order.completed_event_id is not None
    event = OrderCompleted(
        order_id=order.pk,
        user_id=order.user_id,
        items=_items(order),
        total_amount=order.total_amount,
        discount_amount=order.discount_amount,
        pay_amount=order.pay_amount,
        user_coupon_id=order.user_coupon_id,
        paid_at=order.paid_at,
    )
    return message_of(event, event_id=order.completed_event_id)


def cancelled_event(order: Order) -> Message:
    """For ``kafka_bridge.outbox.writing.publish``."""
    assert order.paid_at is not None
    assert order.cancelled_at is not None
    assert order.cancelled_event_id is not None
    event = OrderCancelled(
        order_id=order.pk,
        user_id=order.user_id,
        items=_items(order),
        paid_at=order.paid_at,
        cancelled_at=order.cancelled_at,
    )
    return message_of(event, event_id=order.cancelled_event_id)


def _items(order: Order) -> tuple[Item, ...]:
    return tuple(
        Item(line.product_id, line.name, line.quantity, line.unit_price) for line in order.lines.order_by("id")
    )


def _received(message: Message) -> ReceivedMessage:
    return ReceivedMessage(
        topic=_TOPICS[message.event_type],
        partition=0,
        offset=next(_offsets),
        timestamp=1_767_225_600_000,
        key=b"1",
        value=encode_body(message.body),
        headers=(
            ("ce_id", str(message.event_id).encode()),
            ("ce_type", message.event_type.encode()),
        ),
    )
