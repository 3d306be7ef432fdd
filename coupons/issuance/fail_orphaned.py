"""Requests that were let in and of which nothing came: the answer is written before anything is given back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction

from common.postgres import arrays
from common.postgres.clock import database_time, isoformat_z

from .. import policy
from ..admission import reservations
from .finish import RequestResult, finish_requests

# Where others have the topic that their message stood on.
NO_TOPIC = "(none)"

_LOCK_COUPON = "SELECT coupon_type FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"
_UNWRITTEN = """
    SELECT id FROM unnest(%s::uuid[]) AS asked (id)
    WHERE NOT EXISTS (SELECT FROM kafka_bridge_outboxmessage WHERE event_id = asked.id)
      AND NOT EXISTS (SELECT FROM coupons_issuerequest WHERE request_id = asked.id)
"""
_HOLDERS = "SELECT user_id FROM coupons_usercoupon WHERE user_id = ANY(%s::bigint[]) AND coupon_id = %s"


class OrphanedRequest(NamedTuple):
    """A request of which there is no outbox row; ``age_seconds`` None where nobody knows when it was let in."""

    request_id: UUID
    user_id: int
    age_seconds: float | None


def fail_orphaned_requests(*, coupon_id: int, abandoned: Sequence[OrphanedRequest]) -> set[UUID]:
    """End requests of which there is neither an outbox row nor a terminal row; returns the ids of those ended.

    They end FAILED: UNKNOWN_COUPON if there is no such coupon, ALREADY_ISSUED if their user has it, else ERROR. Whoever
    inserts the outbox row of one of them after that finds it decided. What was taken for it is given back with the
    commit or after it.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Everybody who ends requests of the coupon holds it, so nobody else decides one of them meanwhile.
        cursor.execute(_LOCK_COUPON, [coupon_id])
        row = cursor.fetchone()
        now = database_time()
        unwritten = _unwritten([one.request_id for one in abandoned])
        # Each once: a gate that others wrote into may name one for several users.
        ended = list({one.request_id: one for one in abandoned if one.request_id in unwritten}.values())
        if not ended:
            return set()
        cursor.execute(_HOLDERS, [arrays.numbers([one.user_id for one in ended]), coupon_id])
        holders = {user_id for (user_id,) in cursor.fetchall()}
        reservations.release(unwritten)
        finish_requests(
            [
                RequestResult(
                    request_id=one.request_id,
                    coupon_id=coupon_id,
                    coupon_type=row[0] if row else "",
                    user_id=one.user_id,
                    status=policy.FAILED,
                    reason=_reason(row is not None, one.user_id in holders),
                    user_coupon_id=None,
                    source="",
                    requested_at=_requested_at(one, now),
                    processed_at=now,
                    topic=NO_TOPIC,
                    partition=-1,
                    offset=-1,
                    remaining=None,
                    traceparent="",
                )
                for one in ended
            ]
        )
        return unwritten


def _reason(there_is_a_coupon: bool, user_has_it: bool) -> str:
    if not there_is_a_coupon:
        return policy.UNKNOWN_COUPON
    return policy.ALREADY_ISSUED if user_has_it else policy.ERROR


def _requested_at(one: OrphanedRequest, now: datetime) -> str | None:
    return None if one.age_seconds is None else isoformat_z(now - timedelta(seconds=one.age_seconds))


def _unwritten(request_ids: Collection[UUID]) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(_UNWRITTEN, [arrays.uuids(request_ids)])
        return {request_id for (request_id,) in cursor.fetchall()}
