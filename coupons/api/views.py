"""The HTTP API of coupons: thin views over services and selectors."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import msgspec
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import DomainError, IdempotencyKeyReused, NotFound, NotYourself, Unavailable
from common.api.pagination import paginated
from common.api.requests import APIView, Caller, EmptyBody, body_of, caller_of, idempotency_key, traceparent
from common.api.schema import IDEMPOTENCY_KEY, PAGE, TRACEPARENT, Operation

from .. import metrics, selectors
from ..coupon_cache import coupon_cache
from ..errors import AlreadyIssued, CouponNotOpen, SoldOut
from ..events import CouponType, Id
from ..issuance.accept import request_accept
from ..schemas import Accepted, CouponPage, UserCouponPage
from . import examples

_accepted = metrics.ACCEPTED.labels("API")

_issue = partial(
    Operation,
    answer=examples.ACCEPTED,
    description="The request was accepted; its result will be SUCCESS or FAILED.",
    status=202,
    parameters=[IDEMPOTENCY_KEY, TRACEPARENT],
    headers={
        "Location": {
            "required": True,
            "description": "Where the status of the request can be read.",
            "schema": {"type": "string", "pattern": "^/api/v1/issue-requests/[0-9a-f-]{36}$"},
        },
        "Retry-After": {
            "required": True,
            "description": "Seconds to wait before reading the status.",
            "schema": {"type": "integer", "minimum": 1},
        },
    },
    links={
        "end": {
            "operationId": "issueRequest",
            "parameters": {"requestId": "$response.body#/requestId"},
            "description": "The status of the request.",
        }
    },
    refusals=[NotYourself, NotFound, CouponNotOpen, SoldOut, AlreadyIssued, IdempotencyKeyReused, Unavailable],
)


class IssueByType(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    coupon_type: CouponType
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class IssueById(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class IssueByTypeView(APIView):
    """Request a coupon by its type."""

    @_issue(
        "issueByType",
        bodies={
            "for the caller": IssueByType(examples.COUPON_TYPE),
            "for another user": IssueByType(examples.COUPON_TYPE, examples.USER_ID + 1),
        },
    )
    def post(self, request: Request) -> HttpResponse:
        body = body_of(request, IssueByType)
        return _accept(request, body.coupon_type, body.user_id)


class IssueByIdView(APIView):
    """Request a coupon by its id."""

    @_issue(
        "issueById",
        bodies={"for the caller": IssueById(), "for another user": IssueById(examples.USER_ID + 1)},
        path={"coupon_id": examples.COUPON_ID},
    )
    def post(self, request: Request, coupon_id: int) -> HttpResponse:
        body = body_of(request, IssueById)
        return _accept(request, coupon_id, body.user_id)


class IssueForUserView(APIView):
    """Request a coupon for the user in the path."""

    @_issue(
        "issueForUser",
        bodies={"empty": EmptyBody()},
        path={"user_id": examples.USER_ID, "coupon_id": examples.COUPON_ID},
    )
    def post(self, request: Request, user_id: int, coupon_id: int) -> HttpResponse:
        body_of(request, EmptyBody)
        return _accept(request, coupon_id, user_id)


class IssueRequestView(APIView):
    """The status of a request."""

    @Operation(
        "issueRequest",
        examples.REQUEST_STATUS,
        "The status of the request; SUCCESS and FAILED are final.",
        path={"request_id": examples.REQUEST_ID},
    )
    def get(self, request: Request, request_id: UUID) -> Response:
        status = selectors.request_status(request_id)
        caller = caller_of(request)
        # Another user's request is answered like a missing one: knowing its id gives no access.
        if status is None or (status.user_id != caller.user_id and not caller.may_issue_for_others):
            raise NotFound("There is no such request.")
        return Response(status)


class CouponListView(APIView):
    """The coupons, newest first."""

    @Operation("couponList", examples.COUPON_PAGE, "A page of coupons.", parameters=PAGE)
    def get(self, request: Request) -> Response:
        return paginated(request, self, selectors.coupons(), selectors.coupon_view, CouponPage)


class CouponView(APIView):
    """One coupon."""

    @Operation("coupon", examples.COUPON, "The coupon as it is now.", path={"coupon_id": examples.COUPON_ID})
    def get(self, request: Request, coupon_id: int) -> Response:
        coupon = selectors.coupons().filter(id=coupon_id).first()
        if coupon is None:
            raise NotFound(f"There is no coupon {coupon_id}.")
        return Response(selectors.coupon_view(coupon))


class UserCouponListView(APIView):
    """The coupons that a user has, newest first."""

    @Operation(
        "userCouponList",
        examples.USER_COUPON_PAGE,
        "A page of the user's coupons.",
        path={"user_id": examples.USER_ID},
        parameters=PAGE,
        refusals=[NotYourself],
    )
    def get(self, request: Request, user_id: int) -> Response:
        _allow(caller_of(request), user_id)
        rows = selectors.user_coupons(user_id)
        return paginated(request, self, rows, selectors.user_coupon_view, UserCouponPage)


def _accept(request: Request, id_or_type: int | str, user_id: int | msgspec.UnsetType) -> HttpResponse:
    caller = caller_of(request)
    target = caller.user_id if user_id is msgspec.UNSET else user_id
    _allow(caller, target)
    try:
        accepted = request_accept(
            id_or_type=id_or_type,
            user_id=target,
            caller_id=caller.user_id,
            idempotency_key=idempotency_key(request),
            traceparent=traceparent(request),
        )
    except DomainError as error:
        if not coupon_cache.is_rehearsal(id_or_type):
            metrics.REFUSED.labels(error.code).inc()
        raise
    if not coupon_cache.is_rehearsal(id_or_type):
        _accepted.inc()
    # Django's response: DRF's content negotiation would make a request a third more expensive, and this is always JSON.
    return HttpResponse(
        accepted_body(accepted),
        status=202,
        content_type="application/json",
        headers={"Location": f"/api/v1/issue-requests/{accepted.request_id}", "Retry-After": "1"},
    )


def accepted_body(accepted: Accepted) -> bytes:
    """Encode the answer to a request for a coupon."""
    return msgspec.json.encode(accepted)


def _allow(caller: Caller, user_id: int) -> None:
    if user_id != caller.user_id and not caller.may_issue_for_others:
        raise not_yourself(caller.user_id, user_id)


def not_yourself(caller_id: int, user_id: int) -> NotYourself:
    return NotYourself(f"You are user {caller_id} and may not act for user {user_id}.")
