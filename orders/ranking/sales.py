"""Decode order events into sales of the ranking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from kafka_bridge.errors import PoisonMessage
from kafka_bridge.registry import ReceivedMessage

from ..events import OrderCompleted
from ..messages import ORDER_CANCELLED, ORDER_COMPLETED, read_order_task
from .days import day_of

EVENT_TYPES = (ORDER_COMPLETED, ORDER_CANCELLED)

# Outside this range Redis accepts no expiry time for the keys of the day.
_FIRST_DAY, _LAST_DAY = date(1970, 1, 2), date(9998, 12, 31)


class Sale(NamedTuple):
    """The change an event makes: quantity by product id on the day of payment, negative for a cancellation."""

    event_id: UUID
    day: date
    quantities: Mapping[int, int]


def read_sale(message: ReceivedMessage) -> Sale:
    """Decode the sale in ``message``. Raises PoisonMessage."""
    task = read_order_task(message)
    day = _day_in_range(task.event.paid_at)
    sign = 1 if isinstance(task.event, OrderCompleted) else -1
    quantities: Counter[int] = Counter()
    for item in task.event.items:
        quantities[item.product_id] += sign * item.quantity
    return Sale(task.event_id, day, quantities)


def _day_in_range(paid_at: datetime) -> date:
    try:
        day = day_of(paid_at)
    except OverflowError:
        day = date.max
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise PoisonMessage(f"paidAt {paid_at} is out of range")
    return day
