"""Reservations and counters in PostgreSQL, held against what they stand for."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

import msgspec
from django.db import connection, transaction

from ..admission import AdmissionRequest, reservations
from ..events import IssueRequested
from ..issuance.fail_orphaned import OrphanedRequest, fail_orphaned_requests
from ..issuance.finish import find_decided
from ..messages import ISSUE_REQUESTED
from ..redis_queue import TRANSPORT
from .findings import COUNTER_ISSUED, COUNTER_RESERVED, RESERVATION_ALONE, RESERVATION_DECIDED, Findings

# How often all coupons that users have are counted.
_COUNTED_SECONDS = 600.0

# A row is written with its outbox row, which is kept until the request is decided. One that came late, after the end of
# its request, is removed by whoever gets the message: that takes a moment.
_RESERVATIONS = """
    SELECT v.request_id, v.coupon_id, v.user_id, r.request_id IS NOT NULL,
           extract(epoch FROM statement_timestamp() - v.created_at)::float
    FROM coupons_reservation v
         LEFT JOIN coupons_issuerequest r ON r.request_id = v.request_id
         LEFT JOIN kafka_bridge_outboxmessage o ON o.event_id = v.request_id
    WHERE v.created_at < statement_timestamp() - %s * interval '1 second'
      AND (r.request_id IS NOT NULL OR o.event_id IS NULL)
"""
_RESERVED = """
    SELECT c.id, c.coupon_type, c.reserved, count(r.request_id)
    FROM coupons_coupon c LEFT JOIN coupons_reservation r ON r.coupon_id = c.id AND r.admission = 'reserve'
    GROUP BY c.id HAVING c.reserved <> count(r.request_id)
"""
_ISSUED = """
    SELECT c.id, c.coupon_type, c.issued, coalesce(u.number, 0)
    FROM coupons_coupon c LEFT JOIN (
        SELECT coupon_id, count(*) AS number FROM coupons_usercoupon WHERE status <> 'REVOKED' GROUP BY coupon_id
    ) AS u ON u.coupon_id = c.id
    WHERE c.issued <> coalesce(u.number, 0)
"""
# Accepted by ``reserve``, and their rows are gone: whoever counted only rows would give their pieces to others. This
# reads the whole outbox, for a counter that is wrong.
_UNRESERVED = """
    SELECT o.event_id, o.topic = %s, o.payload FROM kafka_bridge_outboxmessage o
    WHERE o.event_type = %s AND o.headers IS NULL AND position('"admission":"reserve"'::bytea IN o.payload) > 0
      AND NOT EXISTS (SELECT FROM coupons_reservation v WHERE v.request_id = o.event_id)
      AND NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
    ORDER BY o.id
"""
_ROOM = """
    SELECT total_quantity
           - (SELECT count(*) FROM coupons_usercoupon WHERE coupon_id = %(id)s AND status <> 'REVOKED')
           - (SELECT count(*) FROM coupons_reservation WHERE coupon_id = %(id)s AND admission = 'reserve')
    FROM coupons_coupon WHERE id = %(id)s
"""
_LOCK = "SELECT FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"
# What is free afterwards is what is neither issued nor reserved. Where that would be less than nothing, more was given
# away than there is, and no counter mends that.
_COUNT = """
    WITH is_ AS MATERIALIZED (
        SELECT (SELECT count(*) FROM coupons_usercoupon WHERE coupon_id = %(id)s AND status <> 'REVOKED') AS issued,
               (SELECT count(*) FROM coupons_reservation WHERE coupon_id = %(id)s AND admission = 'reserve') AS reserved
    )
    UPDATE coupons_coupon SET issued = is_.issued, reserved = is_.reserved FROM is_
    WHERE id = %(id)s AND is_.issued + is_.reserved <= total_quantity
"""


class StockCheck:
    """Compares reservations and counters. ``patience``: seconds for which a late row may wait for the issuer."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._counted_at = float("-inf")

    def check(self, findings: Findings, *, repair: bool, again: bool = False) -> None:
        """Look at what is under way, and now and then at all that is issued; ``again`` after it was mended."""
        self._check_reservations(findings, repair=repair)
        wrong = self._counters(_RESERVED, COUNTER_RESERVED, findings)
        unreserved = _unreserved() if repair and wrong else {}
        if again or time.monotonic() - self._counted_at > _COUNTED_SECONDS:
            wrong |= self._counters(_ISSUED, COUNTER_ISSUED, findings)
            # What was wrong is counted again with the next look.
            self._counted_at = float("-inf") if wrong else time.monotonic()
        if repair:
            for coupon_id in sorted(wrong):
                _count_again(coupon_id, unreserved.get(coupon_id, []))

    def _check_reservations(self, findings: Findings, *, repair: bool) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_RESERVATIONS, [self._patience])
            rows = cursor.fetchall()
        decided: list[UUID] = []
        alone: dict[int, list[OrphanedRequest]] = defaultdict(list)
        for request_id, coupon_id, user_id, is_decided, age in rows:
            findings.add(RESERVATION_DECIDED if is_decided else RESERVATION_ALONE, f"request {request_id}")
            if is_decided:
                decided.append(request_id)
            else:
                alone[coupon_id].append(OrphanedRequest(request_id, user_id, age))
        if repair:
            if decided:
                with transaction.atomic():
                    reservations.release(decided)
            for coupon_id, abandoned in alone.items():
                fail_orphaned_requests(coupon_id=coupon_id, abandoned=abandoned)

    def _counters(self, query: str, name: str, findings: Findings) -> set[int]:
        with connection.cursor() as cursor:
            cursor.execute(query)
            rows = cursor.fetchall()
        for _, coupon_type, counter, number in rows:
            findings.add(name, f"coupon {coupon_type}: the counter says {counter}, there are {number}")
        return {row[0] for row in rows}


def _unreserved() -> dict[int, list[AdmissionRequest]]:
    """By coupon id the undecided requests that were accepted by ``reserve`` and have no reservation."""
    found: dict[int, list[AdmissionRequest]] = defaultdict(list)
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(_UNRESERVED, [TRANSPORT, ISSUE_REQUESTED])
        for request_id, by_worker, payload in cursor:
            try:
                request = msgspec.json.decode(bytes(payload), type=IssueRequested)
            except msgspec.MsgspecError:
                # Nobody's request: the issuer will say so.
                continue
            if request.coupon_id is not None:
                found[request.coupon_id].append(
                    AdmissionRequest(request_id, request.user_id, request.coupon_id, 0, by_worker)
                )
    return found


def _count_again(coupon_id: int, unreserved: Sequence[AdmissionRequest]) -> None:
    # The lock is a statement of its own: what is counted after it stays so until the commit.
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, [coupon_id])
        decided = find_decided([one.request_id for one in unreserved])
        waiting = [one for one in unreserved if one.request_id not in decided]
        if waiting:
            cursor.execute(_ROOM, {"id": coupon_id})
            (room,) = cursor.fetchone()
            reservations.reserve(waiting[: max(0, room)], reservations.RESERVE)
        cursor.execute(_COUNT, {"id": coupon_id})
