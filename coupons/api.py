"""The HTTP API of coupons: thin views over services and selectors."""

from __future__ import annotations

from typing import Any, Protocol, cast
from uuid import UUID

import msgspec
from django.http import HttpResponse
from rest_framework.exceptions import NotFound as NotAPage
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from . import metrics, openapi, selectors
from .errors import DomainError, InvalidRequest, NotFound, NotYourself
from .events import CouponType, Id
from .messages import is_traceparent
from .models import Coupon, UserCoupon
from .policy import PENDING
from .services.accepting import request_accept

_KEY_LENGTH = 255
_MAX_LIMIT = 200
_accepted = metrics.ACCEPTED.labels("API")


class Caller(Protocol):
    """Who asks, as the authentication classes tell it in ``request.user``."""

    @property
    def user_id(self) -> int: ...
    @property
    def may_issue_for_others(self) -> bool: ...


class IssueByType(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    coupon_type: CouponType
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class IssueById(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    user_id: Id | msgspec.UnsetType = msgspec.UNSET


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class IssueByTypeView(APIView):
    """Ask for a coupon by its type."""

    @openapi.issue("issueByType", IssueByType, openapi.BY_TYPE)
    def post(self, request: Request) -> HttpResponse:
        body = msgspec.convert(request.data, IssueByType)
        return _accept(request, body.coupon_type, body.user_id)


class IssueByIdView(APIView):
    """Ask for a coupon by its id."""

    @openapi.issue("issueById", IssueById, openapi.BY_ID, openapi.COUPON_ID)
    def post(self, request: Request, coupon_id: int) -> HttpResponse:
        body = msgspec.convert(request.data, IssueById)
        return _accept(request, coupon_id, body.user_id)


class IssueForUserView(APIView):
    """Ask for a coupon for the user in the path."""

    @openapi.issue("issueForUser", Nothing, openapi.EMPTY, openapi.USER_ID, openapi.COUPON_ID)
    def post(self, request: Request, user_id: int, coupon_id: int) -> HttpResponse:
        msgspec.convert(request.data, Nothing)
        return _accept(request, coupon_id, user_id)


class IssueRequestView(APIView):
    """How a request stands."""

    @openapi.issue_request
    def get(self, request: Request, request_id: UUID) -> Response:
        status = selectors.request_status(request_id)
        caller = _caller(request)
        # Somebody else's request reads like one that does not exist: the id gives no access.
        if status is None or (status.user_id != caller.user_id and not caller.may_issue_for_others):
            raise NotFound("There is no such request.")
        return Response(status)


class CouponListView(APIView):
    """The coupons, newest first."""

    @openapi.coupon_list
    def get(self, request: Request) -> Response:
        return _page(request, self, selectors.coupons(), _coupon_body)


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
        _allow(_caller(request), user_id)
        return _page(request, self, selectors.user_coupons(user_id), _user_coupon_body)


class Cursor(CursorPagination):
    """Pages by id, newest first; ``limit`` 1 to 200."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = _MAX_LIMIT
    invalid_cursor_message = "The cursor is not one that this list gave out."

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
        except NotAPage as error:
            raise InvalidRequest(self.invalid_cursor_message) from error
        # The position goes into the query as it is, and anybody can make a cursor.
        position = "0" if cursor is None else str(cursor.position or "0")
        if not (position.isascii() and position.isdigit() and int(position[:20]) < 2**63):
            raise InvalidRequest(self.invalid_cursor_message)
        return cursor

    def get_page_size(self, request: Request) -> int:
        raw = request.query_params.get("limit", str(self.page_size))
        if not (raw.isascii() and raw.isdigit() and 1 <= int(raw[:9]) <= _MAX_LIMIT):
            raise InvalidRequest(
                f"limit must be a number from 1 to {_MAX_LIMIT}.",
                errors=[{"field": "limit", "message": f"must be a number from 1 to {_MAX_LIMIT}"}],
            )
        return int(raw)


def _accept(request: Request, id_or_type: int | str, user_id: int | msgspec.UnsetType) -> HttpResponse:
    caller = _caller(request)
    target = caller.user_id if user_id is msgspec.UNSET else user_id
    _allow(caller, target)
    try:
        accepted = request_accept(
            id_or_type=id_or_type,
            user_id=target,
            caller_id=caller.user_id,
            idempotency_key=_idempotency_key(request),
            traceparent=_traceparent(request),
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
    # Django's own response: that of DRF finds out how to render, which here is settled, at a third more per request.
    return HttpResponse(
        msgspec.json.encode(body),
        status=202,
        content_type="application/json",
        headers={"Location": f"/api/v1/issue-requests/{accepted.request_id}", "Retry-After": "1"},
    )


def _caller(request: Request) -> Caller:
    return cast(Caller, request.user)


def _allow(caller: Caller, user_id: int) -> None:
    if user_id != caller.user_id and not caller.may_issue_for_others:
        raise NotYourself(f"You are user {caller.user_id} and may not act for user {user_id}.")


def _idempotency_key(request: Request) -> str | None:
    # META, since ``headers`` would translate the names of them all.
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not (1 <= len(key) <= _KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_KEY_LENGTH} printable ASCII characters.",
            errors=[{"field": "Idempotency-Key", "message": f"must be 1 to {_KEY_LENGTH} printable ASCII characters"}],
        )
    return key


def _traceparent(request: Request) -> str:
    raw: str = request.META.get("HTTP_TRACEPARENT", "")
    return raw if is_traceparent(raw) else ""


def _page(request: Request, view: APIView, rows: Any, body: Any) -> Response:
    cursor = Cursor()
    page: list[Any] = cursor.paginate_queryset(rows, request, view=view) or []
    return Response({"results": [body(row) for row in page], "next": cursor.get_next_link()})


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
