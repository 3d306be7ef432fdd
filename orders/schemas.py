"""Response bodies of the orders API. Services return them, so the first response to a key can be stored unchanged."""

from __future__ import annotations

from typing import Literal

import msgspec

from common.api.pagination import Page

from .events import AwareTime, Id, Item, Won


class CreatedOrder(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    status: Literal["PENDING"]
    items: tuple[Item, ...]
    total_amount: Won
    discount_amount: Won
    pay_amount: Won
    user_coupon_id: Id | None
    expires_at: AwareTime


class PaidOrder(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    status: Literal["PAID"]
    paid_at: AwareTime


class CancelledOrder(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    status: Literal["CANCELLED"]
    cancelled_at: AwareTime


class Order(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    status: Literal["PENDING", "PAYING", "PAID", "CANCELLED", "EXPIRED"]
    items: tuple[Item, ...]
    total_amount: Won
    discount_amount: Won
    pay_amount: Won
    user_coupon_id: Id | None
    expires_at: AwareTime
    paid_at: AwareTime | None
    cancelled_at: AwareTime | None


class BestSeller(msgspec.Struct, frozen=True, rename="camel"):
    """A product and the quantity sold, cancelled orders excluded."""

    product_id: Id
    name: str
    quantity: Id


class BestSellerPage(Page[BestSeller], frozen=True):
    pass
