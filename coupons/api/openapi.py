"""OpenAPI descriptions of the API's operations: parameters, responses, refusals and examples.

Every view method is decorated by ``describe``. couponsite.openapi adds the responses that all operations share (401,
405, 413 ...) and the schema of refusals. tests/contract compares the document with a running server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import msgspec
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiRequest, OpenApiResponse, extend_schema
from msgspec import Meta

from common.api.errors import DomainError, IdempotencyKeyReused, NotFound, NotYourself, Unavailable
from common.api.pagination import MOST_ROWS, USUAL_ROWS
from common.api.requests import KEY_LENGTH

from ..admission import ADMISSIONS
from ..errors import AlreadyIssued, CouponNotOpen, SoldOut
from ..events import AwareTime, CouponType, Id

Method = TypeVar("Method", bound=Callable[..., Any])
Example = Mapping[str, Any]

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
NextPage = Annotated[str, Meta(description="The URL of the next page.", extra_json_schema={"format": "uri"})]


class Accepted(msgspec.Struct, rename="camel"):
    request_id: UUID
    status: Literal["PENDING"]
    coupon_id: Id
    coupon_type: CouponType
    user_id: Id
    sequence: (
        Annotated[int, Meta(ge=1, description="The position in the coupon's queue, if the admission assigns one.")]
        | None
    )


class RequestStatus(msgspec.Struct, rename="camel"):
    request_id: UUID
    coupon_type: str
    user_id: Id | None
    status: Literal["PENDING", "SUCCESS", "FAILED"]
    reason: Literal["SOLD_OUT", "ALREADY_ISSUED", "NOT_OPEN", "UNKNOWN_COUPON", "ERROR"] | None
    user_coupon_id: Id | None
    requested_at: AwareTime | None
    processed_at: AwareTime | None


class Coupon(msgspec.Struct, rename="camel"):
    coupon_id: Id
    coupon_type: CouponType
    name: str
    admission: Annotated[str, Meta(extra_json_schema={"enum": sorted(ADMISSIONS)})]
    discount_type: Literal["PERCENT", "FIXED"]
    discount_value: Annotated[int, Meta(ge=1, description="Percent, or won.")]
    total_quantity: Count
    issued_quantity: Count
    remaining: Count
    opens_at: AwareTime
    closes_at: AwareTime | None
    state: Literal["SCHEDULED", "OPEN", "PAUSED", "SOLD_OUT", "CLOSED"]
    server_time: AwareTime


class CouponPage(msgspec.Struct):
    results: list[Coupon]
    next: NextPage | None


class UserCoupon(msgspec.Struct, rename="camel"):
    user_coupon_id: Id
    coupon_id: Id
    coupon_type: CouponType
    status: Literal["ISSUED", "HELD", "USED", "EXPIRED", "REVOKED"]
    issued_at: AwareTime
    expires_at: AwareTime | None
    used_at: AwareTime | None


class UserCouponPage(msgspec.Struct):
    results: list[UserCoupon]
    next: NextPage | None


# Ids that all examples share.
EXAMPLE_COUPON_ID = 7
EXAMPLE_COUPON_TYPE = "SUMMER-2026"
EXAMPLE_USER_ID = 1001
EXAMPLE_USER_COUPON_ID = 53
EXAMPLE_REQUEST_ID = "0197c3f2-8c1e-7b43-9d5a-2f6e1c0b4a99"

_REQUESTED_AT = "2026-07-01T03:00:00.412094Z"
_ISSUED_AT = "2026-07-01T03:00:00.530771Z"
_EXAMPLE_ACCEPTED = {
    "requestId": EXAMPLE_REQUEST_ID,
    "status": "PENDING",
    "couponId": EXAMPLE_COUPON_ID,
    "couponType": EXAMPLE_COUPON_TYPE,
    "userId": EXAMPLE_USER_ID,
    "sequence": None,
}
_EXAMPLE_STATUS = {
    "requestId": EXAMPLE_REQUEST_ID,
    "couponType": EXAMPLE_COUPON_TYPE,
    "userId": EXAMPLE_USER_ID,
    "status": "SUCCESS",
    "reason": None,
    "userCouponId": EXAMPLE_USER_COUPON_ID,
    "requestedAt": _REQUESTED_AT,
    "processedAt": _ISSUED_AT,
}
_EXAMPLE_COUPON = {
    "couponId": EXAMPLE_COUPON_ID,
    "couponType": EXAMPLE_COUPON_TYPE,
    "name": "Summer sale",
    "admission": "queue",
    "discountType": "PERCENT",
    "discountValue": 10,
    "totalQuantity": 1000,
    "issuedQuantity": 320,
    "remaining": 680,
    "opensAt": "2026-07-01T03:00:00Z",
    "closesAt": None,
    "state": "OPEN",
    "serverTime": _REQUESTED_AT,
}
_EXAMPLE_USER_COUPON = {
    "userCouponId": EXAMPLE_USER_COUPON_ID,
    "couponId": EXAMPLE_COUPON_ID,
    "couponType": EXAMPLE_COUPON_TYPE,
    "status": "ISSUED",
    "issuedAt": _ISSUED_AT,
    "expiresAt": "2026-07-31T03:00:00.530771Z",
    "usedAt": None,
}
# Example bodies of the accept API.
BY_TYPE: Mapping[str, Example] = {
    "for the caller": {"couponType": EXAMPLE_COUPON_TYPE},
    "for another user": {"couponType": EXAMPLE_COUPON_TYPE, "userId": EXAMPLE_USER_ID + 1},
}
BY_ID: Mapping[str, Example] = {"for the caller": {}, "for another user": {"userId": EXAMPLE_USER_ID + 1}}
EMPTY: Mapping[str, Example] = {"empty": {}}


def id_in_path(name: str, example: int) -> OpenApiParameter:
    """A path parameter that is a positive 64-bit integer."""
    schema = {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**63 - 1}
    return OpenApiParameter(name, schema, OpenApiParameter.PATH, examples=[OpenApiExample("example", example)])


COUPON_ID = id_in_path("coupon_id", EXAMPLE_COUPON_ID)
USER_ID = id_in_path("user_id", EXAMPLE_USER_ID)
REQUEST_ID = OpenApiParameter(
    "request_id", UUID, OpenApiParameter.PATH, examples=[OpenApiExample("example", EXAMPLE_REQUEST_ID)]
)
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    # Blanks around a header's value are not part of it.
    {"type": "string", "minLength": 1, "maxLength": KEY_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    OpenApiParameter.HEADER,
    description=(
        "A repeat with the same key, caller and body gets the first accepted answer and has no second effect; with "
        "another body the answer is 422. Refusals are not stored: the same key may be used again. Keys are kept for at "
        "least a day."
    ),
    examples=[OpenApiExample("example", "7c0b1c0e-5a43-4e7e-9f6b-6f6b6f1a2d3c")],
)
TRACEPARENT = OpenApiParameter(
    "traceparent",
    str,
    OpenApiParameter.HEADER,
    description="W3C Trace Context, version 00: passed on to all events of the request. An invalid value is ignored.",
    examples=[OpenApiExample("example", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
)
PAGE = (
    OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": USUAL_ROWS}),
    OpenApiParameter("cursor", str, description="The cursor in `next` of the previous page."),
)


def location(status: int, pattern: str, description: str) -> OpenApiParameter:
    """Describe the header ``Location`` of the response with ``status``; its value matches ``pattern``."""
    return OpenApiParameter(
        "Location",
        {"type": "string", "pattern": pattern},
        OpenApiParameter.HEADER,
        required=True,
        description=description,
        response=[status],
    )


_LOCATION = location(202, "^/api/v1/issue-requests/[0-9a-f-]{36}$", "Where the status of the request can be read.")
_RETRY_AFTER = OpenApiParameter(
    "Retry-After",
    {"type": "integer", "minimum": 1},
    OpenApiParameter.HEADER,
    required=True,
    description="Seconds to wait before reading the status.",
    response=[202],
)
_STATUS_LINK = {
    "end": {
        "operationId": "issueRequest",
        "parameters": {"requestId": "$response.body#/requestId"},
        "description": "The status of the request.",
    }
}


def describe(
    operation_id: str,
    answers: Mapping[int, OpenApiResponse],
    *,
    body: type[msgspec.Struct] | None = None,
    bodies: Mapping[str, Example] | None = None,
    parameters: Sequence[OpenApiParameter] = (),
    refusals: Sequence[type[DomainError] | str] = (),
    links: Mapping[int, Mapping[str, Any]] | None = None,
) -> Callable[[Method], Method]:
    """Describe a view's method as an operation; the docstring of the method, or of its class, is the summary.

    ``answers``: successful responses by status. ``bodies``: examples of ``body`` by name. ``refusals``: the errors (or
    codes of couponsite.error_pages) of this operation beside those of all operations. ``links``: OpenAPI links by
    status.
    """
    codes = [refusal if isinstance(refusal, str) else refusal.code for refusal in refusals]
    return extend_schema(
        operation_id=operation_id,
        request=body
        and OpenApiRequest(body, examples=[_example(name, value) for name, value in (bodies or {}).items()]),
        responses=dict(answers),
        parameters=list(parameters),
        # couponsite.openapi replaces both by standard fields.
        extensions={"x-refusals": codes, "x-links": dict(links or {})},
    )


def answer(body: type[msgspec.Struct], description: str, example: Example) -> OpenApiResponse:
    """Describe the response of a successful call."""
    return OpenApiResponse(body, description, [_example("answer", example)])


def _example(name: str, value: Example) -> OpenApiExample:
    return OpenApiExample(name, dict(value))


def issue(
    operation_id: str,
    body: type[msgspec.Struct],
    bodies: Mapping[str, Example],
    *path: OpenApiParameter,
) -> Callable[[Method], Method]:
    """Describe an operation of the accept API. ``path``: its path parameters."""
    return describe(
        operation_id,
        {202: answer(Accepted, "The request was accepted; its result will be SUCCESS or FAILED.", _EXAMPLE_ACCEPTED)},
        body=body,
        bodies=bodies,
        parameters=[*path, IDEMPOTENCY_KEY, TRACEPARENT, _LOCATION, _RETRY_AFTER],
        refusals=[NotYourself, NotFound, CouponNotOpen, SoldOut, AlreadyIssued, IdempotencyKeyReused, Unavailable],
        links={202: _STATUS_LINK},
    )


issue_request = describe(
    "issueRequest",
    {200: answer(RequestStatus, "The status of the request; SUCCESS and FAILED are final.", _EXAMPLE_STATUS)},
    parameters=[REQUEST_ID],
    refusals=[NotFound],
)
coupon_list = describe(
    "couponList",
    {200: answer(CouponPage, "A page of coupons.", {"results": [_EXAMPLE_COUPON], "next": None})},
    parameters=PAGE,
)
coupon = describe(
    "coupon",
    {200: answer(Coupon, "The coupon as it is now.", _EXAMPLE_COUPON)},
    parameters=[COUPON_ID],
    refusals=[NotFound],
)
user_coupon_list = describe(
    "userCouponList",
    {200: answer(UserCouponPage, "A page of the user's coupons.", {"results": [_EXAMPLE_USER_COUPON], "next": None})},
    parameters=[USER_ID, *PAGE],
    refusals=[NotYourself],
)
