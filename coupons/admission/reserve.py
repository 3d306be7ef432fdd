"""The stock is taken in the transaction of the outbox row: who is let in has a piece, unless it is a duplicate.

The lock is the coupon's row and not one in Redis. A lock in Redis runs out while its owner hangs, and then guards
nothing; the row's lives as long as the transaction that takes the stock. It is the same lock that the issuer takes, so
it is taken as late as possible: all doors of the coupon and its issuer wait for each other there.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection

from ..errors import SoldOut
from . import reservations
from .base import Admission, AdmissionOutcome, AdmissionRequest

_TAKE = """
    UPDATE coupons_coupon SET reserved = reserved + %s, last_sequence = last_sequence + %s
    WHERE id = %s AND total_quantity - issued - reserved >= %s
    RETURNING last_sequence
"""
_LOCK = "SELECT total_quantity - issued - reserved FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE"


class Reserve(Admission):
    """One lock and one UPDATE of the coupon per group of its requests."""

    may_refuse = True

    def confirm(
        self, candidates: Sequence[AdmissionRequest], admitted: Sequence[AdmissionOutcome]
    ) -> list[AdmissionOutcome]:
        """Take a piece for each candidate, first come, first served, until there is none."""
        outcomes, free = reservations.preview(candidates)
        let_in = reservations.fitting(free, candidates, outcomes)
        if let_in:
            rows = reservations.reserve([candidates[place] for place in let_in], reservations.RESERVE)
            for place, outcome in zip(let_in, rows, strict=True):
                outcomes[place] = outcome
            _take(candidates, outcomes, [place for place, row in zip(let_in, rows, strict=True) if row.newly_reserved])
        return [outcome or AdmissionOutcome(SoldOut) for outcome in outcomes]


def _take(
    candidates: Sequence[AdmissionRequest], outcomes: list[AdmissionOutcome | None], fresh: Sequence[int]
) -> None:
    """Give pieces and places in line to the candidates at the indexes ``fresh``, or to the first of them."""
    coupon_id = candidates[0].coupon_id
    quantity, sequence = _lock_and_take(coupon_id, len(fresh)) if fresh else (0, 0)
    for number, place in enumerate(fresh[:quantity], start=1):
        outcomes[place] = AdmissionOutcome(sequence=sequence + number, newly_reserved=True)
    if too_late := [candidates[place] for place in fresh[quantity:]]:
        # Others took the last pieces after the look.
        reservations.remove([one.request_id for one in too_late], of=[coupon_id])
        users = {one.user_id for one in too_late}
        for place, one in enumerate(candidates):
            if one.user_id in users:
                outcomes[place] = None


def _lock_and_take(coupon_id: int, most: int) -> tuple[int, int]:
    """(pieces taken, the last place in line before them); the lock holds until the end of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, [most, most, coupon_id, most])
        if row := cursor.fetchone():
            return most, row[0] - most
        # There are fewer: as many as the lock shows.
        cursor.execute(_LOCK, [coupon_id])
        quantity = min(most, cursor.fetchone()[0])
        if not quantity:
            return 0, 0
        cursor.execute(_TAKE, [quantity, quantity, coupon_id, quantity])
        return quantity, cursor.fetchone()[0] - quantity
