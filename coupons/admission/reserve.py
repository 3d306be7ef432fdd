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
from .base import Admission, AdmissionOutcome, AdmissionRequest

_RESERVE_UNITS = """
    UPDATE coupons_coupon SET reserved = reserved + %s, last_sequence = last_sequence + %s
    WHERE id = %s AND total_quantity - issued - reserved >= %s
    RETURNING last_sequence
"""
_LOCK = "SELECT total_quantity - issued - reserved FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"


class Reserve(Admission):
    """One row lock and one UPDATE of the coupon per group of its requests."""

    may_refuse = True

    def confirm(
        self, candidates: Sequence[AdmissionRequest], admitted: Sequence[AdmissionOutcome]
    ) -> list[AdmissionOutcome]:
        """Reserve a unit for each candidate, first come, first served, until the stock is used up."""
        outcomes, free = reservations.preview(candidates)
        fitting_indexes = reservations.fitting(free, candidates, outcomes)
        if fitting_indexes:
            reserved = reservations.reserve([candidates[index] for index in fitting_indexes], reservations.RESERVE)
            for index, outcome in zip(fitting_indexes, reserved, strict=True):
                outcomes[index] = outcome
            _reserve_units(
                candidates,
                outcomes,
                [index for index, row in zip(fitting_indexes, reserved, strict=True) if row.newly_reserved],
            )
        return [outcome or AdmissionOutcome(SoldOut) for outcome in outcomes]


def _reserve_units(
    candidates: Sequence[AdmissionRequest], outcomes: list[AdmissionOutcome | None], new_indexes: Sequence[int]
) -> None:
    """Reserve units for the candidates at ``new_indexes``, in order, as far as the stock goes; set their outcomes."""
    coupon_id = candidates[0].coupon_id
    quantity, sequence = _lock_and_reserve(coupon_id, len(new_indexes)) if new_indexes else (0, 0)
    for number, index in enumerate(new_indexes[:quantity], start=1):
        outcomes[index] = AdmissionOutcome(sequence=sequence + number, newly_reserved=True)
    if unserved := [candidates[index] for index in new_indexes[quantity:]]:
        # Concurrent requests reserved the last units after ``preview``.
        reservations.remove([candidate.request_id for candidate in unserved], of=[coupon_id])
        users = {candidate.user_id for candidate in unserved}
        for index, candidate in enumerate(candidates):
            if candidate.user_id in users:
                outcomes[index] = None


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
