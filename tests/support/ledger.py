"""Holds what the crowd of a test was told against PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from coupons import invariants
from coupons.models import Coupon
from couponsite.demo.ledger import Undecided, violations
from devstack import wait_until
from tests.support.burst import Burst

RESULT_SECONDS = 60.0


def assert_guarantees_hold(burst: Burst, coupons: Sequence[Coupon]) -> None:
    """Everything was accepted and decided once, the stock went out to the last piece, nobody has two.

    ``coupons`` must have been new before ``burst``. Waits for answers and results.
    """
    answers = burst.finish()
    undecided = Undecided(answer.request_id for answer in answers if answer.request_id)
    wait_until(lambda: undecided.look() == 0, RESULT_SECONDS, "accepted requests without a result")
    stock = {coupon.id: coupon.total_quantity for coupon in coupons}
    assert violations(burst.asks, answers, stock) == []
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
