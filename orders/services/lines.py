"""What an order is about, as events and answers tell it."""

from __future__ import annotations

from ..events import Item
from ..models import Order


def items_of(order: Order) -> tuple[Item, ...]:
    """The lines of an order in the order they were placed in."""
    lines = order.lines.order_by("id").values_list("product_id", "name", "quantity", "unit_price")
    return tuple(Item(*line) for line in lines)
