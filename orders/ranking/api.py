"""The HTTP API of the ranking."""

from __future__ import annotations

from typing import Annotated

import msgspec
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import InvalidRequest
from common.api.requests import APIView
from coupons.api.openapi import NextPage, answer, describe
from coupons.events import Id

from .selectors import best_sellers
from .store import MAX_DAYS

_DAYS, _LIMIT = 3, 5
_MAX_LIMIT = 200


class BestSeller(msgspec.Struct, rename="camel"):
    product_id: Id
    name: str
    quantity: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class BestSellerPage(msgspec.Struct):
    results: list[BestSeller]
    next: NextPage | None


_EXAMPLE = {"results": [{"productId": 3, "name": "Sparkling water", "quantity": 412}], "next": None}


class BestSellersView(APIView):
    """List the best sellers of the last days, best first."""

    @describe(
        "bestSellers",
        {200: answer(BestSellerPage, "One page with the best sellers of the requested days.", _EXAMPLE)},
        parameters=[
            OpenApiParameter(
                "days",
                {"type": "integer", "minimum": 1, "maximum": MAX_DAYS, "default": _DAYS},
                description="Business days of payment, today included. Cancelled orders do not count.",
            ),
            OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": _MAX_LIMIT, "default": _LIMIT}),
        ],
    )
    def get(self, request: Request) -> Response:
        days = _number(request, "days", _DAYS, MAX_DAYS)
        limit = _number(request, "limit", _LIMIT, _MAX_LIMIT)
        found = [BestSeller(row.product_id, row.name, row.quantity) for row in best_sellers(days=days, limit=limit)]
        return Response(BestSellerPage(found, next=None))


def _number(request: Request, name: str, default: int, largest: int) -> int:
    raw = request.query_params.get(name, str(default))
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= largest):
        message = f"must be a number from 1 to {largest}"
        raise InvalidRequest(f"{name} {message}.", errors=[{"field": name, "message": message}])
    return int(raw)
