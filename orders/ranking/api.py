"""The HTTP API of the ranking."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import InvalidRequest
from common.api.requests import APIView
from common.api.schema import Operation

from ..schemas import BestSeller, BestSellerPage
from .selectors import best_sellers
from .store import MAX_DAYS

_DAYS, _LIMIT = 3, 5
_MAX_LIMIT = 200


class BestSellersView(APIView):
    """List the best sellers of the last days, best first."""

    @Operation(
        "bestSellers",
        BestSellerPage([BestSeller(3, "Sparkling water", 412)], next=None),
        "One page with the best sellers of the requested days.",
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
        return Response(BestSellerPage(best_sellers(days=days, limit=limit), next=None))


def _number(request: Request, name: str, default: int, largest: int) -> int:
    raw = request.query_params.get(name, str(default))
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= largest):
        message = f"must be a number from 1 to {largest}"
        raise InvalidRequest(f"{name} {message}.", errors=[{"field": name, "message": message}])
    return int(raw)
