"""Look up requests that were accepted before under an Idempotency-Key, and their results."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.db import connection

from common.postgres import arrays

from ..admission import FinishedRequest
from ..events import IssueRequested
from ..messages import ISSUE_REQUESTED

# The outbox row takes precedence: only it has the sequence. LATERAL forces one index lookup per id; otherwise the
# planner scans tables that are not huge yet.
_READ = """
    SELECT asked.id, accepted.payload, ended.status IS NOT NULL, ended.coupon_id, ended.coupon_type, ended.user_id,
           ended.reason
    FROM unnest(%s::uuid[]) AS asked (id)
         LEFT JOIN LATERAL (
             SELECT payload FROM kafka_bridge_outboxmessage
             WHERE event_id = asked.id AND event_type = %s AND headers IS NULL LIMIT 1
         ) AS accepted ON true
         LEFT JOIN LATERAL (
             SELECT status, coupon_id, coupon_type, user_id, reason FROM coupons_issuerequest
             WHERE request_id = asked.id LIMIT 1
         ) AS ended ON true
"""


class ExistingRequest(NamedTuple):
    """An accepted request. ``sequence`` is its place in line; ``finished`` None: it has no result yet."""

    request_id: UUID
    coupon_id: int
    coupon_type: str
    user_id: int
    sequence: int | None
    finished: FinishedRequest | None

    def is_for(self, coupon_id: int, user_id: int) -> bool:
        return (self.coupon_id, self.user_id) == (coupon_id, user_id)


def find_existing_requests(request_ids: Collection[UUID]) -> dict[UUID, ExistingRequest]:
    """Return those of ``request_ids`` that were accepted before, by id, in one query (none if there are no ids)."""
    if not request_ids:
        return {}
    found = {}
    with connection.cursor() as cursor:
        cursor.execute(_READ, [arrays.uuids(request_ids), ISSUE_REQUESTED])
        for request_id, payload, is_decided, coupon_id, coupon_type, user_id, reason in cursor.fetchall():
            sequence = None
            if payload is not None and (request := _request(bytes(payload))) is not None:
                coupon_id, coupon_type, user_id = request.coupon_id, request.coupon_type, request.user_id
                sequence = request.sequence
            # The result of a message from another producer may lack the coupon or the user.
            if coupon_id is not None and user_id is not None:
                finished = FinishedRequest(request_id, coupon_id, user_id, reason) if is_decided else None
                found[request_id] = ExistingRequest(request_id, coupon_id, coupon_type, user_id, sequence, finished)
    return found


def _request(payload: bytes) -> IssueRequested | None:
    """Decode ``payload``; None if it is unreadable, so that the other requests of the group still get their answer."""
    try:
        return msgspec.json.decode(payload, type=IssueRequested)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
