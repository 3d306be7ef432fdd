"""Placing an order: priced from the products, with the coupon held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec
from django.conf import settings
from django.db import transaction

from common.api.errors import InvalidRequest, NotFound
from common.postgres.clock import database_time
from coupons.redemption import coupon_hold

from .. import policy
from ..events import Item
from ..models import Order, OrderLine, Product
from ..schemas import CreatedOrder
from .idempotency import claim_key, store_response

_OPERATION = "create"


class OrderItemInput(NamedTuple):
    """So many pieces of a product."""

    product_id: int
    quantity: int


def order_create(
    *,
    user_id: int,
    wishes: Sequence[OrderItemInput],
    user_coupon_id: int | None = None,
    idempotency_key: str | None = None,
) -> CreatedOrder:
    """Create an order that waits for its payment for ``ORDER_PAYMENT_MINUTES``.

    Raises NotFound for a product that there is not, CouponNotUsable, InvalidRequest for a sum past ``policy.MOST_WON``,
    and for an idempotency key what ``claim_key`` raises.
    """
    asked = msgspec.json.encode([list(wishes), user_coupon_id])
    with transaction.atomic():
        if idempotency_key is not None:
            earlier = claim_key(user_id=user_id, operation=_OPERATION, key=idempotency_key, asked=asked)
            if earlier is not None:
                return msgspec.json.decode(earlier, type=CreatedOrder)
        answer = _place(user_id, wishes, user_coupon_id)
        if idempotency_key is not None:
            store_response(user_id=user_id, operation=_OPERATION, asked=asked, response=msgspec.json.encode(answer))
    return answer


def _place(user_id: int, wishes: Sequence[OrderItemInput], user_coupon_id: int | None) -> CreatedOrder:
    products = _products(wishes)
    lines = [
        OrderLine(product=product, name=product.name, unit_price=product.price, quantity=wish.quantity)
        for wish in wishes
        for product in [products[wish.product_id]]
    ]
    try:
        total = policy.total_amount((line.unit_price, line.quantity) for line in lines)
    except ValueError as error:
        raise InvalidRequest(f"The order is too large: {error}.") from error
    order = Order.objects.create(
        user_id=user_id,
        total_amount=total,
        pay_amount=total,
        expires_at=database_time() + timedelta(minutes=settings.ORDER_PAYMENT_MINUTES),
    )
    for line in lines:
        line.order = order
    OrderLine.objects.bulk_create(lines)
    if user_coupon_id is not None:
        order.discount_amount = coupon_hold(
            user_coupon_id=user_coupon_id, user_id=user_id, order_id=order.id, amount=total
        )
        order.pay_amount = total - order.discount_amount
        order.user_coupon_id = user_coupon_id
        order.save(update_fields=["discount_amount", "pay_amount", "user_coupon_id"])
    return CreatedOrder(
        order_id=order.id,
        status="PENDING",
        items=tuple(Item(line.product_id, line.name, line.quantity, line.unit_price) for line in lines),
        total_amount=order.total_amount,
        discount_amount=order.discount_amount,
        pay_amount=order.pay_amount,
        user_coupon_id=order.user_coupon_id,
        expires_at=order.expires_at,
    )


def _products(wishes: Sequence[OrderItemInput]) -> Mapping[int, Product]:
    products = Product.objects.in_bulk({wish.product_id for wish in wishes})
    for wish in wishes:
        if wish.product_id not in products:
            raise NotFound(f"There is no product {wish.product_id}.")
    return products
