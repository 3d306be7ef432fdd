"""Reads of coupons, users' coupons and requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.postgres import arrays
from common.postgres.clock import isoformat_z
from kafka_bridge.outbox.writing import stored_payloads

from . import policy, schemas
from .events import IssueRequested
from .issuance import status_cache
from .issuance.status_cache import RequestStatus
from .messages import ISSUE_REQUESTED
from .models import Coupon, IssueRequest, UserCoupon

# LATERAL forces one primary-key lookup per id: for a small table the planner would prefer a full scan.
_READ_RESULTS = """
    SELECT request_id, {columns}
    FROM unnest(%s::uuid[]) AS asked (id),
         LATERAL (SELECT * FROM coupons_issuerequest WHERE request_id = asked.id LIMIT 1) AS ended
"""


class RequestResult(NamedTuple):
    """How a request ended, without the times; the fields are columns of its terminal row."""

    coupon_type: str
    user_id: int | None
    status: str
    reason: str | None
    user_coupon_id: int | None


def coupons() -> QuerySet[Coupon]:
    """Select all coupons but those of rehearsals, annotated with the database's time for ``coupon_view``."""
    return Coupon.objects.filter(rehearsal=False).annotate(server_time=Now())


def coupon_view(coupon: Any) -> schemas.Coupon:
    """Convert a row of ``coupons()``."""
    return schemas.Coupon(
        coupon_id=coupon.id,
        coupon_type=coupon.coupon_type,
        name=coupon.name,
        admission=coupon.admission,
        discount_type=coupon.discount_type,
        discount_value=coupon.discount_value,
        total_quantity=coupon.total_quantity,
        issued_quantity=coupon.issued,
        remaining=coupon.remaining,
        opens_at=coupon.opens_at,
        closes_at=coupon.closes_at,
        state=coupon.window.state(coupon.server_time, coupon.remaining),
        server_time=coupon.server_time,
    )


def coupon_list(limit: int) -> Sequence[schemas.Coupon]:
    """Return the newest ``limit`` coupons."""
    return [coupon_view(coupon) for coupon in coupons().order_by("-id")[:limit]]


def user_coupons(user_id: int) -> QuerySet[UserCoupon]:
    """Select the coupons of a user, annotated with the database's time for ``user_coupon_view``."""
    held = UserCoupon.objects.filter(user_id=user_id, coupon__rehearsal=False)
    return held.select_related("coupon").annotate(server_time=Now())


def user_coupon_view(row: Any) -> schemas.UserCoupon:
    """Convert a row of ``user_coupons()``; an ISSUED coupon past ``expires_at`` becomes EXPIRED."""
    expired = row.status == UserCoupon.Status.ISSUED and row.expires_at and row.expires_at <= row.server_time
    return schemas.UserCoupon(
        user_coupon_id=row.id,
        coupon_id=row.coupon_id,
        coupon_type=row.coupon.coupon_type,
        status="EXPIRED" if expired else row.status,
        issued_at=row.issued_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
    )


def request_status(request_id: UUID) -> RequestStatus | None:
    """Return the status of a request; None if it does not exist."""
    return request_statuses([request_id])[0]


def request_statuses(request_ids: Sequence[UUID]) -> list[RequestStatus | None]:
    """Return the statuses of requests in order, None if one does not exist; one call to Redis, at most two queries.

    Sources, in this order: the status cache in Redis, the terminal row, the outbox row. A request with only an outbox
    row is PENDING.
    """
    found = status_cache.load(request_ids)
    if missing := [request_id for request_id in request_ids if request_id not in found]:
        rows = IssueRequest.objects.filter(request_id__in=missing)
        found |= {row.request_id: terminal_status(row) for row in rows}
        if missing := [request_id for request_id in missing if request_id not in found]:
            payloads = stored_payloads(ISSUE_REQUESTED, missing)
            found |= {request_id: pending_status(request_id, payload) for request_id, payload in payloads.items()}
    return [found.get(request_id) for request_id in request_ids]


def terminal_status(row: IssueRequest) -> RequestStatus:
    """Convert a terminal row to a status."""
    return RequestStatus(
        request_id=row.request_id,
        coupon_type=row.coupon_type,
        user_id=row.user_id,
        status=row.status,
        reason=row.reason,
        user_coupon_id=row.user_coupon_id,
        requested_at=isoformat_z(row.requested_at) if row.requested_at else None,
        processed_at=isoformat_z(row.processed_at),
    )


def request_outcomes(request_ids: Collection[UUID]) -> dict[UUID, tuple[str, str | None]]:
    """Return (status, reason) by id of the decided requests among ``request_ids``, from PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_RESULTS.format(columns="status, reason"), [arrays.uuids(request_ids)])
        return {request_id: (status, reason) for request_id, status, reason in cursor.fetchall()}


def request_results(request_ids: Collection[UUID]) -> dict[UUID, RequestResult]:
    """Return the results of the decided requests among ``request_ids``, from PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_RESULTS.format(columns=", ".join(RequestResult._fields)), [arrays.uuids(request_ids)])
        return {request_id: RequestResult(*result) for request_id, *result in cursor.fetchall()}


def pending_status(request_id: UUID, payload: bytes) -> RequestStatus:
    """Convert the body of an accepted request to its status."""
    request = msgspec.json.decode(payload, type=IssueRequested)
    return RequestStatus(
        request_id=request_id,
        coupon_type=request.coupon_type or "",
        user_id=request.user_id,
        status=policy.PENDING,
        reason=None,
        user_coupon_id=None,
        requested_at=isoformat_z(request.requested_at) if request.requested_at else None,
        processed_at=None,
    )
