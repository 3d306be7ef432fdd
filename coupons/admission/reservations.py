"""Reservations: one row per accepted, undecided request of an admission that reserves.

The row is inserted in the transaction of the outbox row and deleted in that of the terminal row, whose primary key
ensures that both happen once. So these rows are exactly the undecided requests, found without reading an outbox of
millions of rows. Messages are not trusted about reservations: only these rows count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from common.api.errors import IdempotencyKeyReused
from common.postgres import arrays

from ..errors import AlreadyIssued, SoldOut
from .base import AdmissionRequest

GATE = "gate"
# The unit is counted in the coupon's ``reserved``, see ``holds_stock``.
RESERVE = "reserve"

# Ordered by user, so that two sessions that insert the same users do not deadlock.
_INSERT = """
    INSERT INTO coupons_reservation (request_id, coupon_id, user_id, admission, by_worker)
    SELECT request_id, coupon_id, user_id, %s, by_worker
    FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::bool[]) AS row (request_id, coupon_id, user_id, by_worker)
    ORDER BY coupon_id, user_id
    ON CONFLICT DO NOTHING
    RETURNING request_id
"""
_FIND = """
    SELECT request_id, coupon_id, user_id, admission FROM coupons_reservation WHERE request_id = ANY(%s::uuid[])
    UNION
    SELECT request_id, coupon_id, user_id, admission FROM coupons_reservation
    WHERE coupon_id = %s AND user_id = ANY(%s::bigint[])
"""
_REMOVE = """
    DELETE FROM coupons_reservation WHERE request_id = ANY(%s::uuid[]) AND coupon_id = ANY(%s::bigint[])
    RETURNING request_id, coupon_id, user_id, admission
"""
_PREVIEW = """
    SELECT total_quantity - issued - reserved,
           ARRAY(SELECT user_id FROM coupons_usercoupon WHERE user_id = ANY(%s::bigint[]) AND coupon_id = coupon.id)
    FROM coupons_coupon AS coupon WHERE id = %s
"""
_UNDER_WAY = "SELECT count(*) FROM coupons_reservation WHERE coupon_id = %s AND admission <> %s"
_COUPONS_OF = "SELECT DISTINCT coupon_id FROM coupons_reservation WHERE request_id = ANY(%s::uuid[])"
_LOCK_COUPONS = "SELECT FROM coupons_coupon WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE"
# ``greatest``: a wrong counter must not keep requests from finishing. The reconciler recounts it.
_RELEASE = """
    UPDATE coupons_coupon SET reserved = greatest(reserved - given.quantity, 0)
    FROM unnest(%s::bigint[], %s::bigint[]) AS given (id, quantity)
    WHERE coupons_coupon.id = given.id
"""


class Reservation(NamedTuple):
    request_id: UUID
    coupon_id: int
    user_id: int
    admission: str

    @property
    def holds_stock(self) -> bool:
        """Whether its unit is counted in the coupon's ``reserved``."""
        return self.admission == RESERVE


def reserve(candidates: Sequence[AdmissionRequest], admission: str) -> list[AdmissionRequest]:
    """Insert a row for each of the candidates, all of one coupon, within the caller's transaction.

    Returns those whose row was inserted. A repeated request is admitted again; another request of a user who already
    has a row is refused.
    """
    first, others = _first_of_each(candidates)
    inserted_ids = _insert(first, admission) if first else set()
    others += [candidate for candidate in first if candidate.request_id not in inserted_ids]
    for candidate in _without_conflict(others):
        # The conflicting row is gone by now: the user has the coupon, or may request it again.
        candidate.refusal = AlreadyIssued
    return [candidate for candidate in first if candidate.request_id in inserted_ids]


def preview(candidates: Sequence[AdmissionRequest]) -> tuple[list[AdmissionRequest], int]:
    """Decide about the candidates, all of one coupon, whose user has a reservation or the coupon.

    Returns (the others, free units). Free units are neither issued nor counted in ``reserved``. No lock is taken, so
    refusals do not slow down other requests.
    """
    # Reservations are read first: a request that finishes in between is seen as a reservation or as its coupon.
    wanting = _without_conflict(candidates)
    with connection.cursor() as cursor:
        cursor.execute(
            _PREVIEW, [arrays.numbers([candidate.user_id for candidate in candidates]), candidates[0].coupon_id]
        )
        free, holders = cursor.fetchone() or (0, ())
    holding = set(holders)
    for candidate in candidates:
        if candidate.user_id in holding:
            candidate.refusal = AlreadyIssued
    return [candidate for candidate in wanting if candidate.refusal is None], free


def fitting(free: int, candidates: Sequence[AdmissionRequest]) -> list[AdmissionRequest]:
    """Return the candidates that fit into ``free`` units, one unit per user, and refuse the others."""
    users: set[int] = set()
    fitting = []
    for candidate in candidates:
        if candidate.user_id in users or len(users) < free:
            users.add(candidate.user_id)
            fitting.append(candidate)
        else:
            candidate.refusal = SoldOut
    return fitting


def number_uncounted(coupon_id: int) -> int:
    """Count the undecided requests for the coupon whose units are not counted in ``reserved``."""
    with connection.cursor() as cursor:
        cursor.execute(_UNDER_WAY, [coupon_id, RESERVE])
        return int(cursor.fetchone()[0])


def remove(request_ids: Collection[UUID], *, of: Collection[int]) -> list[Reservation]:
    """Delete and return the reservations of requests for the coupons ``of``.

    The caller holds the lock on the coupons, and updates ``reserved`` for the rows with ``holds_stock``.
    """
    with connection.cursor() as cursor:
        cursor.execute(_REMOVE, [arrays.uuids(request_ids), arrays.numbers(of)])
        return [Reservation(*row) for row in cursor.fetchall()]


def release(request_ids: Collection[UUID]) -> list[Reservation]:
    """Delete the reservations of requests that get no coupon and return their units to the stock.

    Must run inside a transaction. Returns the deleted reservations.
    """
    with connection.cursor() as cursor:
        cursor.execute(_COUPONS_OF, [arrays.uuids(request_ids)])
        coupon_ids = [coupon_id for (coupon_id,) in cursor.fetchall()]
        if not coupon_ids:
            return []
        # Every session that deletes reservations locks the coupons first; otherwise two could deadlock.
        cursor.execute(_LOCK_COUPONS, [coupon_ids])
        removed = remove(request_ids, of=coupon_ids)
        released = Counter(row.coupon_id for row in removed if row.holds_stock)
        if released:
            cursor.execute(_RELEASE, [list(released), list(released.values())])
        return removed


def _without_conflict(candidates: Sequence[AdmissionRequest]) -> list[AdmissionRequest]:
    """Decide about the candidates, all of one coupon, whose request or user has a row; return the others."""
    if not candidates:
        return []
    rows = _find(candidates)
    requests = {row.request_id: (row.coupon_id, row.user_id) for row in rows}
    pairs = set(requests.values())
    without = []
    for candidate in candidates:
        pair = (candidate.coupon_id, candidate.user_id)
        if candidate.request_id in requests:
            candidate.refusal = None if requests[candidate.request_id] == pair else IdempotencyKeyReused
        elif pair in pairs:
            candidate.refusal = AlreadyIssued
        else:
            without.append(candidate)
    return without


def _first_of_each(
    candidates: Sequence[AdmissionRequest],
) -> tuple[list[AdmissionRequest], list[AdmissionRequest]]:
    """Return (the candidates whose user and request id have not occurred before, the others)."""
    users: set[int] = set()
    requests: set[UUID] = set()
    first: list[AdmissionRequest] = []
    others: list[AdmissionRequest] = []
    for candidate in candidates:
        is_first = candidate.user_id not in users and candidate.request_id not in requests
        (first if is_first else others).append(candidate)
        users.add(candidate.user_id)
        requests.add(candidate.request_id)
    return first, others


def _insert(candidates: Sequence[AdmissionRequest], admission: str) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT,
            [
                admission,
                arrays.uuids([candidate.request_id for candidate in candidates]),
                arrays.numbers([candidate.coupon_id for candidate in candidates]),
                arrays.numbers([candidate.user_id for candidate in candidates]),
                arrays.booleans([candidate.by_worker for candidate in candidates]),
            ],
        )
        return {request_id for (request_id,) in cursor.fetchall()}


def _find(candidates: Sequence[AdmissionRequest]) -> list[Reservation]:
    with connection.cursor() as cursor:
        cursor.execute(
            _FIND,
            [
                arrays.uuids([candidate.request_id for candidate in candidates]),
                candidates[0].coupon_id,
                arrays.numbers([candidate.user_id for candidate in candidates]),
            ],
        )
        return [Reservation(*row) for row in cursor.fetchall()]
