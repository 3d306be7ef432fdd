"""Cancel an order: release its coupon; refund a paid order first."""

from __future__ import annotations

from django.db import transaction

from common.postgres.clock import database_time
from coupons.redemption import coupon_release

from ..errors import InProgress, InvalidState
from ..models import Order
from ..schemas import CancelledOrder
from .refunding import refund_request, refund_settle


def order_cancel(*, order_id: int, user_id: int, traceparent: str = "") -> CancelledOrder:
    """Cancel an order; a cancelled order gets the same response again.

    Raises NotFound, InvalidState for an expired order or a refund that the provider declines, InProgress while the
    order is being paid, Unavailable while the provider does not answer: the sweep or the next call then repeats the
    refund.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_id, user_id=user_id)
        if order.status == Order.Status.PAYING:
            raise InProgress("The order is being paid: cancel it afterwards.", retry_after=1)
        if order.status == Order.Status.EXPIRED:
            raise InvalidState("The order has expired: there is nothing to cancel.")
        if order.status == Order.Status.PENDING:
            _cancel_unpaid(order)
        refund = refund_request(order) if order.status == Order.Status.PAID else None
    if refund is not None:
        order = refund_settle(refund, traceparent=traceparent)
    assert order.cancelled_at is not None
    return CancelledOrder(order_id=order.id, status="CANCELLED", cancelled_at=order.cancelled_at)


def _cancel_unpaid(order: Order) -> None:
    order.status = Order.Status.CANCELLED
    order.cancelled_at = database_time()
    order.save(update_fields=["status", "cancelled_at"])
    if order.user_coupon_id is not None:
        coupon_release(user_coupon_id=order.user_coupon_id, order_id=order.id, cause="order cancelled")
