"""Domain events of orders. ``messages`` maps those for other systems to messages, ``signals`` carries the others."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from common.bigint import MAX_BIGINT

Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_BIGINT, extra_json_schema={"format": "int64"})]
Won = Annotated[int, msgspec.Meta(ge=0, le=MAX_BIGINT, extra_json_schema={"format": "int64"})]
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


class Item(msgspec.Struct, frozen=True, rename="camel"):
    """A line of an order, with name and price at the time the order was placed."""

    product_id: Id
    name: str
    quantity: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    unit_price: Won


class PaymentCompleted(msgspec.Struct, frozen=True):
    """The provider took the money, or the order costs nothing. It stays in the process and in its transaction."""

    order_id: Id
    user_id: Id
    amount: Won
    paid_at: AwareTime
    traceparent: str


class OrderCompleted(msgspec.Struct, frozen=True, rename="camel"):
    """An order was paid and is confirmed."""

    order_id: Id
    user_id: Id
    items: tuple[Item, ...]
    total_amount: Won
    discount_amount: Won
    pay_amount: Won
    user_coupon_id: Id | None
    paid_at: AwareTime


class OrderCancelled(msgspec.Struct, frozen=True, rename="camel"):
    """A paid order was cancelled and its money refunded."""

    order_id: Id
    user_id: Id
    items: tuple[Item, ...]
    paid_at: AwareTime
    cancelled_at: AwareTime


OrderEvent = OrderCompleted | OrderCancelled
