"""Place an order: take the prices from the products and hold the coupon."""

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
    """A product and the quantity to order."""

    product_id: int
    quantity: int


def order_create(
    *,
    user_id: int,
    items: Sequence[OrderItemInput],
    user_coupon_id: int | None = None,
    idempotency_key: str | None = None,
) -> CreatedOrder:
    """Create an order that can be paid within ``ORDER_PAYMENT_MINUTES``.

    Raises NotFound for an unknown product, CouponNotUsable, InvalidRequest for a total above ``policy.MAX_WON``, and
    with an idempotency key the errors of ``claim_key``.
    """
    parameters = msgspec.json.encode([list(items), user_coupon_id])
    with transaction.atomic():
        if idempotency_key is not None:
            stored = claim_key(
                CreatedOrder, user_id=user_id, operation=_OPERATION, key=idempotency_key, parameters=parameters
            )
            if stored is not None:
                return stored
        response = _place(user_id, items, user_coupon_id)
        if idempotency_key is not None:
            store_response(user_id=user_id, operation=_OPERATION, parameters=parameters, response=response)
    return response


def _place(user_id: int, items: Sequence[OrderItemInput], user_coupon_id: int | None) -> CreatedOrder:
    products = _products(items)
    lines = [
        OrderLine(product=product, name=product.name, unit_price=product.price, quantity=item.quantity)
        for item in items
        for product in [products[item.product_id]]
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


def _products(items: Sequence[OrderItemInput]) -> Mapping[int, Product]:
    products = Product.objects.in_bulk({item.product_id for item in items})
    for item in items:
        if item.product_id not in products:
            raise NotFound(f"There is no product {item.product_id}.")
    return products
