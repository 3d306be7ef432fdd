"""The examples of the API's description. They use two orders: a cancelled order cannot be paid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from coupons.api.examples import USER_COUPON_ID

from .events import Item
from .schemas import CancelledOrder, CreatedOrder, Order, PaidOrder

PRODUCT_ID = 31
ORDER_ID = 4711
CANCELLED_ORDER_ID = 4712
PRODUCT_NAME = "Wool socks"
PRICE = 12_900

_PAID_AT = datetime(2026, 7, 1, 3, 2, 41, 903_318, tzinfo=UTC)
_EXPIRES_AT = datetime(2026, 7, 1, 3, 31, 10, 250_113, tzinfo=UTC)
_ITEMS = (Item(PRODUCT_ID, PRODUCT_NAME, 2, PRICE),)

CREATED = CreatedOrder(ORDER_ID, "PENDING", _ITEMS, 25_800, 2_580, 23_220, USER_COUPON_ID, _EXPIRES_AT)
PAID = PaidOrder(ORDER_ID, "PAID", _PAID_AT)
CANCELLED = CancelledOrder(CANCELLED_ORDER_ID, "CANCELLED", _PAID_AT + timedelta(minutes=2))
ORDER = Order(ORDER_ID, "PAID", _ITEMS, 25_800, 2_580, 23_220, USER_COUPON_ID, _EXPIRES_AT, _PAID_AT, cancelled_at=None)
