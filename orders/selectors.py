"""Reads of orders."""

from __future__ import annotations

from . import schemas
from .models import Order


def order_of_user(order_id: int, user_id: int) -> schemas.Order | None:
    """Read an order of this user; None if the user has no order with that id."""
    order = Order.objects.filter(id=order_id, user_id=user_id).first()
    if order is None:
        return None
    return schemas.Order(
        order_id=order.id,
        status=order.status,  # type: ignore[arg-type]
        items=order.items(),
        total_amount=order.total_amount,
        discount_amount=order.discount_amount,
        pay_amount=order.pay_amount,
        user_coupon_id=order.user_coupon_id,
        expires_at=order.expires_at,
        paid_at=order.paid_at,
        cancelled_at=order.cancelled_at,
    )
