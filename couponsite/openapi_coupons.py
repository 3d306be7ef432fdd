"""The OpenAPI description of the coupon doors.

It stands here and not on the views, since coupons knows nothing of the site around it. The Structs exist for the
description only; tests/edge/test_openapi.py holds them against what the views answer.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import msgspec
from drf_spectacular.extensions import OpenApiViewExtension
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view

from coupons.api import IssueById, IssueByType, Nothing
from coupons.events import AwareTime

State = Literal["SCHEDULED", "OPEN", "PAUSED", "SOLD_OUT", "CLOSED"]
Reason = Literal["SOLD_OUT", "ALREADY_ISSUED", "NOT_OPEN", "UNKNOWN_COUPON", "ERROR"]


class Accepted(msgspec.Struct, rename="camel"):
    request_id: UUID
    status: Literal["PENDING"]
    coupon_id: int
    coupon_type: str
    user_id: int
    sequence: int | None


class RequestStatus(msgspec.Struct, rename="camel"):
    request_id: UUID
    coupon_type: str
    user_id: int | None
    status: Literal["PENDING", "SUCCESS", "FAILED"]
    reason: Reason | None
    user_coupon_id: int | None
    requested_at: AwareTime | None
    processed_at: AwareTime | None


class Coupon(msgspec.Struct, rename="camel"):
    coupon_id: int
    coupon_type: str
    name: str
    admission: Literal["queue", "gate", "reserve"]
    discount_type: Literal["PERCENT", "FIXED"]
    discount_value: int
    total_quantity: int
    issued_quantity: int
    remaining: int
    opens_at: AwareTime
    closes_at: AwareTime | None
    state: State
    server_time: AwareTime


class CouponPage(msgspec.Struct):
    results: list[Coupon]
    next: str | None


class UserCoupon(msgspec.Struct, rename="camel"):
    user_coupon_id: int
    coupon_id: int
    coupon_type: str
    status: Literal["ISSUED", "HELD", "USED", "EXPIRED", "REVOKED"]
    issued_at: AwareTime
    expires_at: AwareTime | None
    used_at: AwareTime | None


class UserCouponPage(msgspec.Struct):
    results: list[UserCoupon]
    next: str | None


def _id(name: str) -> OpenApiParameter:
    schema = {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**63 - 1}
    return OpenApiParameter(name, schema, OpenApiParameter.PATH)


_IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    OpenApiParameter.HEADER,
    description="The same key, user and coupon get the first accepted answer again.",
)
_PAGE = [
    OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
    OpenApiParameter("cursor", str, description="As in `next` of the page before."),
]


def _issue(operation_id: str, body: type[msgspec.Struct], *path: OpenApiParameter) -> Any:
    parameters = [*path, _IDEMPOTENCY_KEY]
    return extend_schema(operation_id=operation_id, request=body, responses={202: Accepted}, parameters=parameters)


_VIEWS: dict[str, dict[str, Any]] = {
    "IssueByTypeView": {"post": _issue("issue_by_type", IssueByType)},
    "IssueByIdView": {"post": _issue("issue_by_id", IssueById, _id("coupon_id"))},
    "IssueForUserView": {"post": _issue("issue_for_user", Nothing, _id("user_id"), _id("coupon_id"))},
    "IssueRequestView": {
        "get": extend_schema(
            operation_id="issue_request",
            responses={200: RequestStatus},
            parameters=[OpenApiParameter("request_id", UUID, OpenApiParameter.PATH)],
        )
    },
    "CouponListView": {"get": extend_schema(operation_id="coupon_list", responses={200: CouponPage}, parameters=_PAGE)},
    "CouponView": {"get": extend_schema(operation_id="coupon", responses={200: Coupon}, parameters=[_id("coupon_id")])},
    "UserCouponListView": {
        "get": extend_schema(
            operation_id="user_coupon_list",
            responses={200: UserCouponPage},
            parameters=[_id("user_id"), *_PAGE],
        )
    },
}


class DescribedView(OpenApiViewExtension):  # type: ignore[no-untyped-call]
    """Lays the descriptions of ``methods`` over the view ``target_class``."""

    methods: dict[str, Any] = {}

    def view_replacement(self) -> Any:
        return extend_schema_view(**self.methods)(type(self.target.__name__, (self.target,), {}))


for _name, _methods in _VIEWS.items():
    type(f"Described{_name}", (DescribedView,), {"target_class": f"coupons.api.{_name}", "methods": _methods})
