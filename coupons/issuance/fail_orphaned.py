"""Finish orphaned requests (admitted, but without an outbox row): write the result first, then release."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction

from common.postgres import arrays
from common.postgres.clock import database_time, isoformat_z

from .. import metrics, policy
from ..admission import reservations
from .finish import RequestResult, finish_requests

# Stored as the topic of a result for which no message exists.
NO_TOPIC = "(none)"

_LOCK_COUPON = "SELECT coupon_type FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"
_UNWRITTEN = """
    SELECT id FROM unnest(%s::uuid[]) AS asked (id)
    WHERE NOT EXISTS (SELECT FROM kafka_bridge_outboxmessage WHERE event_id = asked.id)
      AND NOT EXISTS (SELECT FROM coupons_issuerequest WHERE request_id = asked.id)
"""
_HOLDERS = "SELECT user_id FROM coupons_usercoupon WHERE user_id = ANY(%s::bigint[]) AND coupon_id = %s"


class OrphanedRequest(NamedTuple):
    """An admitted request without an outbox row; ``age_seconds`` since admission, None if unknown."""

    request_id: UUID
    user_id: int
    age_seconds: float | None


def fail_orphaned_requests(*, coupon_id: int, orphaned: Sequence[OrphanedRequest]) -> None:
    """Finish the requests that have neither an outbox row nor a terminal row.

    They are FAILED: UNKNOWN_COUPON if the coupon does not exist, ALREADY_ISSUED if the user has it, else ERROR. If the
    outbox row of such a request is inserted later, the request is found decided. Reservations are released with the
    commit, the gate's entries after it.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Every writer of results for the coupon holds this lock, so none of these requests is decided concurrently.
        cursor.execute(_LOCK_COUPON, [coupon_id])
        row = cursor.fetchone()
        now = database_time()
        unwritten = _unwritten([request.request_id for request in orphaned])
        # Each id once: a corrupted gate may list the same request for several users.
        finished = list(
            {request.request_id: request for request in orphaned if request.request_id in unwritten}.values()
        )
        if not finished:
            return
        cursor.execute(_HOLDERS, [arrays.numbers([request.user_id for request in finished]), coupon_id])
        holders = {user_id for (user_id,) in cursor.fetchall()}
        reservations.release(unwritten)
        results = [
            RequestResult(
                request_id=request.request_id,
                coupon_id=coupon_id,
                coupon_type=row[0] if row else "",
                user_id=request.user_id,
                status=policy.FAILED,
                reason=_reason(row is not None, request.user_id in holders),
                user_coupon_id=None,
                source="",
                requested_at=_requested_at(request, now),
                topic=NO_TOPIC,
                partition=-1,
                offset=-1,
                remaining=None,
                published_at=None,
                traceparent="",
            )
            for request in finished
        ]
        finish_requests(results, now)
        errors = sum(result.reason == policy.ERROR for result in results)
        transaction.on_commit(partial(metrics.ORPHANED_ERRORS.inc, errors), robust=True)


def _reason(coupon_exists: bool, is_holder: bool) -> str:
    if not coupon_exists:
        return policy.UNKNOWN_COUPON
    return policy.ALREADY_ISSUED if is_holder else policy.ERROR


def _requested_at(request: OrphanedRequest, now: datetime) -> str | None:
    return None if request.age_seconds is None else isoformat_z(now - timedelta(seconds=request.age_seconds))


def _unwritten(request_ids: Collection[UUID]) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(_UNWRITTEN, [arrays.uuids(request_ids)])
        return {request_id for (request_id,) in cursor.fetchall()}
