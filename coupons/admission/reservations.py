"""What is taken for requests that are accepted and undecided: a row each, from the outbox row to the terminal row.

The row is inserted in the transaction of the outbox row and deleted in that of the terminal row, whose primary key
makes both once. So these rows are exactly what is under way, and finding it does not mean reading an outbox of
millions. A message on the topic can claim what it likes: whether something was taken for it stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from common.api.errors import IdempotencyKeyReused
from common.postgres import arrays

from ..errors import AlreadyIssued
from .base import AdmissionOutcome, AdmissionRequest

GATE = "gate"
# The piece is counted in the coupon's ``reserved``.
RESERVE = "reserve"

# In the order of users, so that two sessions that insert the same ones do not wait for each other.
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
# A counter that is wrong must not keep requests from their end: it is counted again by the reconciler.
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
        """Whether its piece is among the coupon's ``reserved``."""
        return self.admission == RESERVE


def reserve(candidates: Sequence[AdmissionRequest], admission: str) -> list[AdmissionOutcome]:
    """Insert a row for each of the candidates, all of one coupon, within the caller's transaction.

    Fresh are those that got one. Another request of a user who has a row is refused; the same request is let in again.
    """
    first = _first_of_each(candidates)
    inserted = _insert([candidates[index] for index in first], admission)
    fresh = {index for index in first if candidates[index].request_id in inserted}
    others = [index for index in range(len(candidates)) if index not in fresh]
    told = dict(zip(others, conflicts([candidates[index] for index in others]), strict=True))
    # What it collided with is gone by now: its user has the coupon, or may ask once more.
    return [
        AdmissionOutcome(newly_reserved=True) if index in fresh else told[index] or AdmissionOutcome(AlreadyIssued)
        for index in range(len(candidates))
    ]


def preview(candidates: Sequence[AdmissionRequest]) -> tuple[list[AdmissionOutcome | None], int]:
    """(outcomes, what is left) of candidates of one coupon; the outcome is None where nothing is known of the user.

    What is left is neither issued nor ``counted``. No lock is waited for, so who is refused costs nobody else anything.
    """
    # Requests under way come first: one that ends meanwhile is seen as one, or as the coupon that came of it.
    known = conflicts(candidates)
    with connection.cursor() as cursor:
        cursor.execute(_PREVIEW, [arrays.numbers([one.user_id for one in candidates]), candidates[0].coupon_id])
        free, holders = cursor.fetchone() or (0, ())
    holding = set(holders)
    outcomes = [
        AdmissionOutcome(AlreadyIssued) if one.user_id in holding else outcome
        for one, outcome in zip(candidates, known, strict=True)
    ]
    return outcomes, free


def fitting(free: int, candidates: Sequence[AdmissionRequest], known: Sequence[AdmissionOutcome | None]) -> list[int]:
    """The places of those candidates not known yet for whose users there is a piece."""
    users: set[int] = set()
    places = []
    for place, one in enumerate(candidates):
        if known[place] is None and (one.user_id in users or len(users) < free):
            users.add(one.user_id)
            places.append(place)
    return places


def number_uncounted(coupon_id: int) -> int:
    """How many requests for the coupon are under way whose pieces are not ``counted``."""
    with connection.cursor() as cursor:
        cursor.execute(_UNDER_WAY, [coupon_id, RESERVE])
        return int(cursor.fetchone()[0])


def conflicts(candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome | None]:
    """What becomes of candidates of one coupon whose request or user has a row; None for the others."""
    if not candidates:
        return []
    rows = _find(candidates)
    requests = {row.request_id: (row.coupon_id, row.user_id) for row in rows}
    pairs = {(row.coupon_id, row.user_id) for row in rows}
    return [_conflict(one, requests, pairs) for one in candidates]


def remove(request_ids: Collection[UUID], *, of: Collection[int]) -> list[Reservation]:
    """Delete what is reserved of coupons for requests, and return it.

    The caller holds the lock on the coupons, and moves the pieces that are ``counted``.
    """
    with connection.cursor() as cursor:
        cursor.execute(_REMOVE, [arrays.uuids(request_ids), arrays.numbers(of)])
        return [Reservation(*row) for row in cursor.fetchall()]


def release(request_ids: Collection[UUID]) -> list[Reservation]:
    """Delete the rows of requests that get nothing, and return their pieces to the stock, within a transaction.

    Returns what was deleted.
    """
    with connection.cursor() as cursor:
        cursor.execute(_COUPONS_OF, [arrays.uuids(request_ids)])
        coupon_ids = [coupon_id for (coupon_id,) in cursor.fetchall()]
        if not coupon_ids:
            return []
        # First, like everybody who deletes these rows, or two would wait for each other.
        cursor.execute(_LOCK_COUPONS, [coupon_ids])
        removed = remove(request_ids, of=coupon_ids)
        given = Counter(row.coupon_id for row in removed if row.holds_stock)
        if given:
            cursor.execute(_RELEASE, [list(given), list(given.values())])
        return removed


def _conflict(
    one: AdmissionRequest, requests: Mapping[UUID, tuple[int, int]], pairs: Collection[tuple[int, int]]
) -> AdmissionOutcome | None:
    pair = (one.coupon_id, one.user_id)
    if one.request_id in requests:
        return AdmissionOutcome(None if requests[one.request_id] == pair else IdempotencyKeyReused)
    return AdmissionOutcome(AlreadyIssued) if pair in pairs else None


def _first_of_each(candidates: Sequence[AdmissionRequest]) -> list[int]:
    """The places of the candidates whose user and request are the first of their kind."""
    users: set[int] = set()
    requests: set[UUID] = set()
    places = []
    for place, one in enumerate(candidates):
        if one.user_id not in users and one.request_id not in requests:
            places.append(place)
        users.add(one.user_id)
        requests.add(one.request_id)
    return places


def _insert(candidates: Sequence[AdmissionRequest], admission: str) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT,
            [
                admission,
                arrays.uuids([one.request_id for one in candidates]),
                arrays.numbers([one.coupon_id for one in candidates]),
                arrays.numbers([one.user_id for one in candidates]),
                arrays.booleans([one.by_worker for one in candidates]),
            ],
        )
        return {request_id for (request_id,) in cursor.fetchall()}


def _find(candidates: Sequence[AdmissionRequest]) -> list[Reservation]:
    with connection.cursor() as cursor:
        cursor.execute(
            _FIND,
            [
                arrays.uuids([one.request_id for one in candidates]),
                candidates[0].coupon_id,
                arrays.numbers([one.user_id for one in candidates]),
            ],
        )
        return [Reservation(*row) for row in cursor.fetchall()]
