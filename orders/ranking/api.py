"""The HTTP API of the ranking."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.requests import APIView, number_parameter
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
        days = number_parameter(request, "days", default=_DAYS, largest=MAX_DAYS)
        limit = number_parameter(request, "limit", default=_LIMIT, largest=_MAX_LIMIT)
        return Response(BestSellerPage(best_sellers(days=days, limit=limit), next=None))
