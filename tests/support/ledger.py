"""Holds what the crowd of a test was told against PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coupons import invariants
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon
from demo.load_client import Answer, Ask
from demo.verification import Undecided, violations
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.models import DeadLetter
from kafka_bridge.outbox.published import anything_unpublished

RESULT_SECONDS = 120.0


class Asked(Protocol):
    """The clients that asked: a burst, or a load without end."""

    asks: list[Ask]

    def finish(self) -> list[Answer]:
        """Wait for the last answer and return all of them."""


def assert_guarantees_hold(burst: Asked, coupons: Sequence[Coupon]) -> None:
    """Everything was accepted and decided once, the stock went out to the last unit, no user has two.

    And nothing became a dead letter: no fault of a service is a message's. ``coupons`` must have been new before
    ``burst``. Waits for answers and results, and until relay and issuer have nothing left to do: repeats come last.
    """
    answers = burst.finish()
    when_decided(answers)
    wait_until(
        _nothing_left_to_do, RESULT_SECONDS, "rows that are not published, or messages that are not consumed", 0.2
    )
    stock = {coupon.id: coupon.total_quantity for coupon in coupons}
    assert violations(burst.asks, answers, stock) == []
    assert not DeadLetter.objects.exists()
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


def when_decided(answers: Sequence[Answer], seconds: float = RESULT_SECONDS) -> None:
    """Wait until everything that was accepted has its result."""
    undecided = Undecided(answer.request_id for answer in answers if answer.request_id)
    wait_until(lambda: undecided.look() == 0, seconds, "accepted requests without a result")


def _nothing_left_to_do() -> bool:
    return not anything_unpublished() and group_lag(ISSUE.group_id, ISSUE.topics) == 0
