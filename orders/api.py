"""The HTTP API of orders: thin views over services and selectors."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import NotFound
from common.api.requests import APIView, EmptyBody, body_of, caller_of, idempotency_key, traceparent

from . import openapi
from .events import Id
from .policy import MAX_LINES, MAX_QUANTITY
from .selectors import order_of_user
from .services.cancelling import order_cancel
from .services.paying import order_pay
from .services.placing import OrderItemInput, order_create


class NewItem(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    product_id: Id
    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY)]


class NewOrder(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    items: Annotated[list[NewItem], Meta(min_length=1, max_length=MAX_LINES)]
    # Responses have null where there is no coupon, so requests may send null too.
    user_coupon_id: Id | None = None


class OrderListView(APIView):
    """Place an order."""

    @openapi.order_create(NewOrder)
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

    @openapi.order
    def get(self, request: Request, order_id: int) -> Response:
        order = order_of_user(order_id, caller_of(request).user_id)
        if order is None:
            raise NotFound(f"There is no order {order_id}.")
        return Response(order)


class PayOrderView(APIView):
    """Pay an order; paying it again returns the same response."""

    @openapi.order_pay
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

    @openapi.order_cancel
    def post(self, request: Request, order_id: int) -> Response:
        body_of(request, EmptyBody)
        user_id = caller_of(request).user_id
        cancelled = order_cancel(order_id=order_id, user_id=user_id, traceparent=traceparent(request))
        return Response(cancelled)
