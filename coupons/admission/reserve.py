"""The stock is taken in the transaction of the outbox row: who is let in has a piece, unless it is a duplicate.

The lock is the coupon's row and not one in Redis. A lock in Redis runs out while its owner hangs, and then guards
nothing; the row's lives as long as the transaction that takes the stock. It is the same lock that the issuer takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection

from kafka_bridge import arrays

from ..errors import AlreadyIssued, SoldOut
from . import reservations
from .base import Admission, Candidate, Outcome

# A coupon that is sold out by now does not fit the condition and is not locked: refusals wait for nobody.
_LOCK = """
    SELECT total_quantity - issued - reserved, last_sequence FROM coupons_coupon
    WHERE id = %s AND total_quantity - issued - reserved > 0
    FOR NO KEY UPDATE
"""
_HOLDERS = "SELECT user_id FROM coupons_usercoupon WHERE user_id = ANY(%s::bigint[]) AND coupon_id = %s"
_TAKE = """
    UPDATE coupons_coupon SET reserved = reserved + %s, last_sequence = last_sequence + %s
    WHERE id = %s AND total_quantity - issued - reserved >= %s
"""


class Reserve(Admission):
    """One lock and one UPDATE of the coupon per group of its requests."""

    selective = True

    def record(self, candidates: Sequence[Candidate], admitted: Sequence[Outcome]) -> list[Outcome]:
        """Take a piece for each candidate, first come, first served, until there is none."""
        coupon_id = candidates[0].coupon_id
        # The lock comes first: what follows reads what whoever held it before has committed.
        free, sequence = _lock(coupon_id)
        outcomes = _known(candidates)
        let_in = _within(free, candidates, outcomes)
        if let_in:
            taken = reservations.take([candidates[index] for index in let_in], reservations.RESERVE)
            for index, outcome in zip(let_in, taken, strict=True):
                sequence += outcome.fresh
                outcomes[index] = outcome._replace(sequence=sequence) if outcome.fresh else outcome
            _take(coupon_id, sum(outcome.fresh for outcome in taken))
        return [outcome or Outcome(SoldOut) for outcome in outcomes]


def _lock(coupon_id: int) -> tuple[int, int]:
    """What is left of the coupon, and the last place in line; (0, 0) without a lock if nothing is left."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, [coupon_id])
        return cursor.fetchone() or (0, 0)


def _known(candidates: Sequence[Candidate]) -> list[Outcome | None]:
    """The outcomes of candidates whose user has the coupon or a request under way; None for the others."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS, [arrays.numbers([one.user_id for one in candidates]), candidates[0].coupon_id])
        holders = {user_id for (user_id,) in cursor.fetchall()}
    return [
        Outcome(AlreadyIssued) if one.user_id in holders else outcome
        for one, outcome in zip(candidates, reservations.collisions(candidates), strict=True)
    ]


def _within(free: int, candidates: Sequence[Candidate], known: Sequence[Outcome | None]) -> list[int]:
    """The places of those candidates not known yet for whose users there is a piece."""
    users: set[int] = set()
    places = []
    for place, one in enumerate(candidates):
        if known[place] is None and (one.user_id in users or len(users) < free):
            users.add(one.user_id)
            places.append(place)
    return places


def _take(coupon_id: int, quantity: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, [quantity, quantity, coupon_id, quantity])
        if quantity and not cursor.rowcount:
            raise RuntimeError(f"coupon {coupon_id} has less than the {quantity} pieces that its lock showed")
