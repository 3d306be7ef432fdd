"""Domain events of orders. ``messages`` maps them to messages for other systems."""

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


class OrderCompleted(msgspec.Struct, frozen=True, rename="camel"):
    """An order was paid."""

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
