"""The HTTP API of coupons: thin views over services and selectors."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import DomainError, NotFound, NotYourself
from common.api.pagination import paginated
from common.api.requests import APIView, Caller, EmptyBody, body_of, caller_of, idempotency_key, traceparent

from .. import metrics, selectors
from ..events import CouponType, Id
from ..issuance.accept import request_accept
from ..models import Coupon, UserCoupon
from ..policy import PENDING
from . import openapi

_accepted = metrics.ACCEPTED.labels("API")


class IssueByType(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    coupon_type: CouponType
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class IssueById(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class IssueByTypeView(APIView):
    """Request a coupon by its type."""

    @openapi.issue("issueByType", IssueByType, openapi.BY_TYPE)
    def post(self, request: Request) -> HttpResponse:
        body = body_of(request, IssueByType)
        return _accept(request, body.coupon_type, body.user_id)


class IssueByIdView(APIView):
    """Request a coupon by its id."""

    @openapi.issue("issueById", IssueById, openapi.BY_ID, openapi.COUPON_ID)
    def post(self, request: Request, coupon_id: int) -> HttpResponse:
        body = body_of(request, IssueById)
        return _accept(request, coupon_id, body.user_id)


class IssueForUserView(APIView):
    """Request a coupon for the user in the path."""

    @openapi.issue("issueForUser", EmptyBody, openapi.EMPTY, openapi.USER_ID, openapi.COUPON_ID)
    def post(self, request: Request, user_id: int, coupon_id: int) -> HttpResponse:
        body_of(request, EmptyBody)
        return _accept(request, coupon_id, user_id)


class IssueRequestView(APIView):
    """The status of a request."""

    @openapi.issue_request
    def get(self, request: Request, request_id: UUID) -> Response:
        status = selectors.request_status(request_id)
        caller = caller_of(request)
        # Another user's request is answered like a missing one: knowing its id gives no access.
        if status is None or (status.user_id != caller.user_id and not caller.may_issue_for_others):
            raise NotFound("There is no such request.")
        return Response(status)


class CouponListView(APIView):
    """The coupons, newest first."""

    @openapi.coupon_list
    def get(self, request: Request) -> Response:
        return paginated(request, self, selectors.coupons(), _coupon_body)


class CouponView(APIView):
    """One coupon."""

    @openapi.coupon
    def get(self, request: Request, coupon_id: int) -> Response:
        coupon = selectors.coupons().filter(id=coupon_id).first()
        if coupon is None:
            raise NotFound(f"There is no coupon {coupon_id}.")
        return Response(_coupon_body(coupon))


class UserCouponListView(APIView):
    """The coupons that a user has, newest first."""

    @openapi.user_coupon_list
    def get(self, request: Request, user_id: int) -> Response:
        _allow(caller_of(request), user_id)
        return paginated(request, self, selectors.user_coupons(user_id), _user_coupon_body)


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
        metrics.REFUSED.labels(error.code).inc()
        raise
    _accepted.inc()
    body = {
        "requestId": accepted.request_id,
        "status": PENDING,
        "couponId": accepted.coupon_id,
        "couponType": accepted.coupon_type,
        "userId": accepted.user_id,
        "sequence": accepted.sequence,
    }
    # Django's response: DRF's content negotiation would make a request a third more expensive, and this is always JSON.
    return HttpResponse(
        msgspec.json.encode(body),
        status=202,
        content_type="application/json",
        headers={"Location": f"/api/v1/issue-requests/{accepted.request_id}", "Retry-After": "1"},
    )


def _allow(caller: Caller, user_id: int) -> None:
    if user_id != caller.user_id and not caller.may_issue_for_others:
        raise NotYourself(f"You are user {caller.user_id} and may not act for user {user_id}.")


def _coupon_body(coupon: Coupon) -> dict[str, Any]:
    view = selectors.coupon_view(coupon)
    return {
        "couponId": view.coupon_id,
        "couponType": view.coupon_type,
        "name": view.name,
        "admission": view.admission,
        "discountType": view.discount_type,
        "discountValue": view.discount_value,
        "totalQuantity": view.total_quantity,
        "issuedQuantity": view.issued_quantity,
        "remaining": view.remaining,
        "opensAt": view.opens_at,
        "closesAt": view.closes_at,
        "state": view.state,
        "serverTime": view.server_time,
    }


def _user_coupon_body(row: UserCoupon) -> dict[str, Any]:
    view = selectors.user_coupon_view(row)
    return {
        "userCouponId": view.user_coupon_id,
        "couponId": view.coupon_id,
        "couponType": view.coupon_type,
        "status": view.status,
        "issuedAt": view.issued_at,
        "expiresAt": view.expires_at,
        "usedAt": view.used_at,
    }
