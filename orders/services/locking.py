"""The lock that every change of an order takes."""

from __future__ import annotations

from common.api.errors import NotFound

from ..models import Order


def order_lock(order_id: int, *, user_id: int | None = None) -> Order:
    """The order, locked until the end of the caller's transaction; with ``user_id`` only that user's.

    Raises NotFound; somebody else's order reads like one that does not exist.
    """
    owned = {} if user_id is None else {"user_id": user_id}
    order = Order.objects.select_for_update(no_key=True).filter(id=order_id, **owned).first()
    if order is None:
        raise NotFound(f"There is no order {order_id}.")
    return order
