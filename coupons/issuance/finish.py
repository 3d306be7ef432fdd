"""Finish requests: write the terminal row and the event; after the commit update admissions, status cache and logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Literal
from uuid import UUID

import msgspec
from django.db import connection, transaction

from common.postgres import arrays, copying
from common.postgres.clock import isoformat_z
from coupons.admission import reservations
from coupons.admission.reservations import Reservation
from kafka_bridge.operating.alerts import alert_rule, open_alert
from kafka_bridge.outbox.writing import insert_rows

from .. import metrics, request_log
from ..admission import finished_requests, notify_finished
from ..events import IssueEnded
from ..messages import result_rows
from ..policy import is_rehearsal
from . import status_cache
from .status_cache import RequestStatus

# A subquery per id, since the planner would otherwise scan a table that is not huge yet.
_READ_DECIDED = """
    SELECT id FROM unnest(%s::uuid[]) AS asked (id)
    WHERE (SELECT true FROM coupons_issuerequest WHERE request_id = asked.id)
"""


class RequestResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A row of IssueRequest, and ``traceparent``, which only the event carries.

    Times are ISO 8601 in UTC. ``published_at`` is the time of publishing, None if it is not known or the request was
    not published. ``replay_of`` is the failed request that this one replays, None if it is the first.
    """

    request_id: UUID
    coupon_id: int | None
    coupon_type: str
    user_id: int | None
    status: Literal["SUCCESS", "FAILED"]
    reason: str | None
    user_coupon_id: int | None
    source: str
    requested_at: str | None
    topic: str
    partition: int
    offset: int
    remaining: int | None
    published_at: str | None
    traceparent: str
    replay_of: UUID | None = None


def find_decided(request_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of ``request_ids`` that have a terminal row."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_DECIDED, [arrays.uuids(request_ids)])
        return {request_id for (request_id,) in cursor.fetchall()}


def finish_requests(rows: Sequence[RequestResult], now: datetime) -> None:
    """Write terminal rows, processed at ``now``, and their events; after the commit, update what depends on them."""
    columns = {
        "request_id": copying.uuids([row.request_id for row in rows]),
        "coupon_id": copying.numbers([row.coupon_id for row in rows]),
        "coupon_type": copying.texts([row.coupon_type for row in rows]),
        "user_id": copying.numbers([row.user_id for row in rows]),
        "status": copying.texts([row.status for row in rows]),
        "reason": copying.texts([row.reason for row in rows]),
        "user_coupon_id": copying.numbers([row.user_coupon_id for row in rows]),
        "source": copying.texts([row.source for row in rows]),
        "requested_at": copying.texts([row.requested_at for row in rows]),
        "processed_at": [isoformat_z(now)] * len(rows),
        "topic": copying.texts([row.topic for row in rows]),
        "partition": copying.numbers([row.partition for row in rows]),
        '"offset"': copying.numbers([row.offset for row in rows]),
        "remaining": copying.numbers([row.remaining for row in rows]),
        "published_at": copying.texts([row.published_at for row in rows]),
    }
    # Replays come one at a time: other batches do without the column.
    if any(row.replay_of for row in rows):
        columns["replay_of"] = copying.texts([None if row.replay_of is None else str(row.replay_of) for row in rows])
    copying.copy_rows("coupons_issuerequest", columns)
    results = [
        IssueEnded(
            request_id=row.request_id,
            user_id=row.user_id,
            coupon_id=row.coupon_id,
            coupon_type=row.coupon_type,
            status=row.status,
            reason=row.reason,
            user_coupon_id=row.user_coupon_id,
            processed_at=now,
        )
        for row in rows
    ]
    insert_rows(result_rows(zip(results, [row.traceparent for row in rows], strict=True)))
    transaction.on_commit(partial(_notify_admissions, results), robust=True)
    transaction.on_commit(partial(_cache_statuses, rows, now), robust=True)
    transaction.on_commit(partial(_log_decided, rows, now), robust=True)


def _notify_admissions(results: Sequence[IssueEnded]) -> None:
    notify_finished(finished_requests(results))


def _log_decided(rows: Sequence[RequestResult], now: datetime) -> None:
    """Log the committed decisions and count them in the metrics."""
    counted = [row for row in rows if not is_rehearsal(row.coupon_type, row.user_id)]
    for (status, reason), count in Counter((row.status, row.reason) for row in counted).items():
        metrics.DECIDED.labels(status, reason or "").inc(count)
    for row in counted:
        # A replay says nothing about how long requests take.
        if row.requested_at is not None and row.replay_of is None:
            time_to_result = now - datetime.fromisoformat(row.requested_at)
            metrics.TIME_TO_RESULT.observe(max(0.0, time_to_result.total_seconds()))
    request_log.log_requests(
        "request decided",
        [
            {
                "requestId": row.request_id,
                "couponType": row.coupon_type,
                "userId": row.user_id,
                "status": row.status,
                "reason": row.reason,
                "partition": row.partition,
                "offset": row.offset,
                "traceparent": row.traceparent,
            }
            for row in rows
        ],
    )


def _cache_statuses(rows: Sequence[RequestResult], now: datetime) -> None:
    processed_at = isoformat_z(now)
    status_cache.store(
        RequestStatus(
            request_id=row.request_id,
            coupon_type=row.coupon_type,
            user_id=row.user_id,
            status=row.status,
            reason=row.reason,
            user_coupon_id=row.user_coupon_id,
            requested_at=row.requested_at,
            processed_at=processed_at,
        )
        for row in rows
    )


GATE_ADMITTED_REFUSED = alert_rule("gate-admitted-refused", "warning")


def alert_gate_mismatch(refused: Collection[UUID], reserved: Collection[Reservation]) -> None:
    """Open an alert if the gate admitted some of the ``refused`` requests, in the transaction that finishes them."""
    from_gate = [
        reservation
        for reservation in reserved
        if reservation.admission == reservations.GATE and reservation.request_id in refused
    ]
    if from_gate:
        first = from_gate[0]
        open_alert(
            GATE_ADMITTED_REFUSED,
            f"{len(from_gate)} requests for coupon {first.coupon_id} were admitted by the gate and refused by"
            f" the issuer, the first of them {first.request_id}",
        )
