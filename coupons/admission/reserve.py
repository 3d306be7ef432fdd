"""Stock is reserved in the transaction of the outbox row: an admitted request has a unit, unless it is a duplicate.

The lock is the coupon's row lock, not a lock in Redis. A lock in Redis expires while its owner hangs and then protects
nothing; the row lock lasts as long as the transaction that reserves the stock. The issuer takes the same lock, so it is
taken as late as possible: all accept APIs and the issuer of a coupon wait for each other there.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection

from ..errors import SoldOut
from . import reservations
from .base import Admission, AdmissionRequest

_RESERVE_UNITS = """
    UPDATE coupons_coupon SET reserved = reserved + %s, last_sequence = last_sequence + %s
    WHERE id = %s AND total_quantity - issued - reserved >= %s
    RETURNING last_sequence
"""
_LOCK = "SELECT total_quantity - issued - reserved FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"


class Reserve(Admission):
    """One row lock and one UPDATE of the coupon per group of its requests."""

    may_refuse = True

    def confirm(self, candidates: Sequence[AdmissionRequest]) -> Sequence[AdmissionRequest]:
        """Reserve a unit for each candidate, first come, first served, until the stock is used up."""
        wanting, free = reservations.preview(candidates)
        inserted = reservations.reserve(reservations.fitting(free, wanting), reservations.RESERVE)
        return _reserve_units(candidates, inserted) if inserted else ()


def _reserve_units(
    candidates: Sequence[AdmissionRequest], inserted: Sequence[AdmissionRequest]
) -> Sequence[AdmissionRequest]:
    """Reserve units for ``inserted``, in order, as far as the stock goes, and return those that got one."""
    coupon_id = inserted[0].coupon_id
    quantity, sequence = _lock_and_reserve(coupon_id, len(inserted))
    for number, candidate in enumerate(inserted[:quantity], start=1):
        candidate.sequence = sequence + number
    if unserved := inserted[quantity:]:
        # Concurrent requests reserved the last units after ``preview``.
        reservations.remove([candidate.request_id for candidate in unserved], of=[coupon_id])
        users = {candidate.user_id for candidate in unserved}
        for candidate in candidates:
            if candidate.user_id in users:
                candidate.refusal = SoldOut
    return inserted[:quantity]


def _lock_and_reserve(coupon_id: int, wanted: int) -> tuple[int, int]:
    """Return (units reserved, last sequence before them). The lock is held until the end of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute(_RESERVE_UNITS, [wanted, wanted, coupon_id, wanted])
        if row := cursor.fetchone():
            return wanted, row[0] - wanted
        # Fewer units are left than wanted: read how many, under the lock.
        cursor.execute(_LOCK, [coupon_id])
        quantity = min(wanted, cursor.fetchone()[0])
        if not quantity:
            return 0, 0
        cursor.execute(_RESERVE_UNITS, [quantity, quantity, coupon_id, quantity])
        return quantity, cursor.fetchone()[0] - quantity
