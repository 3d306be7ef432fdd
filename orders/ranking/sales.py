"""What the events of orders mean to the ranking."""

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


# Outside of them no key can be told when to expire.
_FIRST_DAY, _LAST_DAY = date(1970, 1, 2), date(9998, 12, 31)


class Sale(NamedTuple):
    """What an event does to the ranking: on the day of payment so many of each product, negative if cancelled."""

    event_id: UUID
    day: date
    quantities: Mapping[int, int]


def read_sale(message: ReceivedMessage) -> Sale:
    """The sale that ``message`` tells of. Raises PoisonMessage."""
    task = read_order_task(message)
    day = _possible_day(task.event.paid_at)
    sign = 1 if isinstance(task.event, OrderCompleted) else -1
    quantities: Counter[int] = Counter()
    for item in task.event.items:
        quantities[item.product_id] += sign * item.quantity
    return Sale(task.event_id, day, quantities)


def _possible_day(paid_at: datetime) -> date:
    try:
        day = day_of(paid_at)
    except OverflowError:
        day = date.max
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise PoisonMessage(f"nothing was paid at {paid_at}")
    return day
