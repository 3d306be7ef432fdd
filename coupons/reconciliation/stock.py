"""Compare reservations and counters in PostgreSQL with the requests and the coupons that they count."""

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

# Seconds between two counts of all issued coupons.
_COUNT_ISSUED_SECONDS = 600.0

# A reservation is inserted together with its outbox row, which is kept until the request is decided. A reservation
# inserted after the decision is removed by the consumer of the message, within the patience.
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
# Requests accepted by `reserve` whose reservation is gone: a count of reservations alone would give their units to
# others. It reads the whole outbox, so it runs only for a wrong counter.
_UNRESERVED = """
    SELECT o.event_id, o.topic = %s, o.payload FROM kafka_bridge_outboxmessage o
    WHERE o.event_type = %s AND o.headers IS NULL AND position('"admission":"reserve"'::bytea IN o.payload) > 0
      AND NOT EXISTS (SELECT FROM coupons_reservation v WHERE v.request_id = o.event_id)
      AND NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
    ORDER BY o.id
"""
_REMAINING = """
    SELECT total_quantity
           - (SELECT count(*) FROM coupons_usercoupon WHERE coupon_id = %(id)s AND status <> 'REVOKED')
           - (SELECT count(*) FROM coupons_reservation WHERE coupon_id = %(id)s AND admission = 'reserve')
    FROM coupons_coupon WHERE id = %(id)s
"""
_LOCK = "SELECT FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"
# The remaining stock is then total - issued - reserved. If that were negative, more units were issued than exist,
# which no counter can repair: the row stays as it is.
_COUNT = """
    WITH is_ AS MATERIALIZED (
        SELECT (SELECT count(*) FROM coupons_usercoupon WHERE coupon_id = %(id)s AND status <> 'REVOKED') AS issued,
               (SELECT count(*) FROM coupons_reservation WHERE coupon_id = %(id)s AND admission = 'reserve') AS reserved
    )
    UPDATE coupons_coupon SET issued = is_.issued, reserved = is_.reserved FROM is_
    WHERE id = %(id)s AND is_.issued + is_.reserved <= total_quantity
"""


class StockCheck:
    """Compares reservations and counters. ``patience``: seconds that a late reservation may wait for the issuer."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._counted_at = float("-inf")

    def check(self, findings: Findings, *, repair: bool, again: bool = False) -> None:
        """Check reservations, and every 600 s the count of issued coupons; with ``again``, after a repair, both."""
        self._check_reservations(findings, repair=repair)
        wrong = self._counters(_RESERVED, COUNTER_RESERVED, findings)
        unreserved = _unreserved() if repair and wrong else {}
        if again or time.monotonic() - self._counted_at > _COUNT_ISSUED_SECONDS:
            wrong |= self._counters(_ISSUED, COUNTER_ISSUED, findings)
            # A wrong counter is counted again in the next check.
            self._counted_at = float("-inf") if wrong else time.monotonic()
        if repair:
            for coupon_id in sorted(wrong):
                _count_again(coupon_id, unreserved.get(coupon_id, []))

    def _check_reservations(self, findings: Findings, *, repair: bool) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_RESERVATIONS, [self._patience])
            rows = cursor.fetchall()
        decided: list[UUID] = []
        orphaned: dict[int, list[OrphanedRequest]] = defaultdict(list)
        for request_id, coupon_id, user_id, is_decided, age in rows:
            findings.add(RESERVATION_DECIDED if is_decided else RESERVATION_ALONE, f"request {request_id}")
            if is_decided:
                decided.append(request_id)
            else:
                orphaned[coupon_id].append(OrphanedRequest(request_id, user_id, age))
        if repair:
            if decided:
                with transaction.atomic():
                    reservations.release(decided)
            for coupon_id, requests in orphaned.items():
                fail_orphaned_requests(coupon_id=coupon_id, orphaned=requests)

    def _counters(self, query: str, name: str, findings: Findings) -> set[int]:
        with connection.cursor() as cursor:
            cursor.execute(query)
            rows = cursor.fetchall()
        for _, coupon_type, counter, number in rows:
            findings.add(name, f"coupon {coupon_type}: the counter is {counter}, the count is {number}")
        return {row[0] for row in rows}


def _unreserved() -> dict[int, list[AdmissionRequest]]:
    """By coupon id, the undecided requests accepted by ``reserve`` that have no reservation."""
    found: dict[int, list[AdmissionRequest]] = defaultdict(list)
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(_UNRESERVED, [TRANSPORT, ISSUE_REQUESTED])
        for request_id, by_worker, payload in cursor:
            try:
                request = msgspec.json.decode(bytes(payload), type=IssueRequested)
            except msgspec.MsgspecError:
                # Not a request: the issuer writes a dead letter for it.
                continue
            if request.coupon_id is not None:
                found[request.coupon_id].append(
                    AdmissionRequest(request_id, request.user_id, request.coupon_id, 0, by_worker)
                )
    return found


def _count_again(coupon_id: int, unreserved: Sequence[AdmissionRequest]) -> None:
    # The lock is a statement of its own: a count made after it stays true until the commit.
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, [coupon_id])
        decided = find_decided([request.request_id for request in unreserved])
        undecided = [request for request in unreserved if request.request_id not in decided]
        if undecided:
            cursor.execute(_REMAINING, {"id": coupon_id})
            (remaining,) = cursor.fetchone()
            reservations.reserve(undecided[: max(0, remaining)], reservations.RESERVE)
        cursor.execute(_COUNT, {"id": coupon_id})
