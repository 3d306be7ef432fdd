"""The HTTP API of orders: thin views over services and selectors."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import IdempotencyKeyReused, NotFound, Unavailable
from common.api.requests import APIView, EmptyBody, body_of, caller_of, idempotency_key, traceparent
from common.api.schema import IDEMPOTENCY_KEY, TRACEPARENT, Operation, Schema
from coupons.errors import CouponNotUsable

from . import examples
from .errors import InProgress, InvalidState
from .events import Id
from .policy import MAX_LINES, MAX_QUANTITY
from .selectors import order_of_user
from .services.cancelling import order_cancel
from .services.paying import order_pay
from .services.placing import OrderItemInput, order_create


class NewItem(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    product_id: Id
    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY)]


class NewOrder(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    items: Annotated[list[NewItem], Meta(min_length=1, max_length=MAX_LINES)]
    # Responses have null where there is no coupon, so requests may send null too.
    user_coupon_id: Id | None = None


_ITEMS = [NewItem(examples.PRODUCT_ID, quantity=2)]


def _next(operation_id: str, description: str) -> Schema:
    parameters = {"orderId": "$response.body#/orderId"}
    return {"operationId": operation_id, "parameters": parameters, "description": description}


class OrderListView(APIView):
    """Place an order."""

    @Operation(
        "orderCreate",
        examples.CREATED,
        "The order is created and can be paid until `expiresAt`.",
        status=201,
        bodies={
            "without a coupon": NewOrder(_ITEMS),
            "with a coupon": NewOrder(_ITEMS, examples.CREATED.user_coupon_id),
        },
        parameters=[IDEMPOTENCY_KEY],
        headers={
            "Location": {
                "required": True,
                "description": "Where the order can be read.",
                "schema": {"type": "string", "pattern": "^/api/v1/orders/[0-9]{1,19}$"},
            }
        },
        links={
            "order": _next("order", "Read the order."),
            "pay": _next("orderPay", "Pay the order."),
            "cancel": _next("orderCancel", "Cancel the order."),
        },
        refusals=[NotFound, CouponNotUsable, InProgress, IdempotencyKeyReused],
    )
    def post(self, request: Request) -> Response:
        body = body_of(request, NewOrder)
        order = order_create(
            user_id=caller_of(request).user_id,
            items=[OrderItemInput(item.product_id, item.quantity) for item in body.items],
            user_coupon_id=body.user_coupon_id,
            idempotency_key=idempotency_key(request),
        )
        return Response(order, status=201, headers={"Location": f"/api/v1/orders/{order.order_id}"})


class OrderView(APIView):
    """Get an order."""

    @Operation("order", examples.ORDER, "The order and its current status.", path={"order_id": examples.ORDER_ID})
    def get(self, request: Request, order_id: int) -> Response:
        order = order_of_user(order_id, caller_of(request).user_id)
        if order is None:
            raise NotFound(f"There is no order {order_id}.")
        return Response(order)


class PayOrderView(APIView):
    """Pay an order; paying it again returns the same response."""

    @Operation(
        "orderPay",
        examples.PAID,
        "The order is paid. Repeated calls do not pay it again.",
        bodies={"empty": EmptyBody()},
        path={"order_id": examples.ORDER_ID},
        parameters=[IDEMPOTENCY_KEY, TRACEPARENT],
        refusals=[InvalidState, InProgress, IdempotencyKeyReused, Unavailable],
    )
    def post(self, request: Request, order_id: int) -> Response:
        body_of(request, EmptyBody)
        paid = order_pay(
            order_id=order_id,
            user_id=caller_of(request).user_id,
            idempotency_key=idempotency_key(request),
            traceparent=traceparent(request),
        )
        return Response(paid)


class CancelOrderView(APIView):
    """Cancel an order; cancelling it again returns the same response."""

    @Operation(
        "orderCancel",
        examples.CANCELLED,
        "The order is cancelled; a payment is refunded.",
        bodies={"empty": EmptyBody()},
        path={"order_id": examples.CANCELLED_ORDER_ID},
        parameters=[TRACEPARENT],
        refusals=[InvalidState, InProgress, Unavailable],
    )
    def post(self, request: Request, order_id: int) -> Response:
        body_of(request, EmptyBody)
        user_id = caller_of(request).user_id
        cancelled = order_cancel(order_id=order_id, user_id=user_id, traceparent=traceparent(request))
        return Response(cancelled)
