"""How many sessions of PostgreSQL a process of the intake has at most, whatever the crowd does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from django.db import connection

from couponsite.intake.server import READ_THREADS, SELECTIVE_THREADS
from tests.support.calls import ask, call
from tests.support.factories import CouponFactory

from .conftest import Pair

# One each for batches of `queue`, probes, the heartbeat, the sampling of the outbox, and waking the relay.
MOST = SELECTIVE_THREADS + READ_THREADS + 5

_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s"


def test_the_sessions_of_a_process_are_bounded(pair: Pair) -> None:
    coupons = [
        CouponFactory.create(total_quantity=1000, admission=admission)
        for admission in ("queue", "gate", "reserve")
        for _ in range(6)
    ]
    calls = [partial(ask, pair.port, coupon.coupon_type, user) for user in range(1, 11) for coupon in coupons] + [
        partial(call, pair.port, "GET", path, user=1)
        for path in ("/readyz", "/metrics", "/api/v1/coupons", *(f"/api/v1/coupons/{coupon.id}" for coupon in coupons))
        for _ in range(5)
    ]
    with ThreadPoolExecutor(32) as pool:
        statuses = {reply.status for reply in pool.map(lambda one: one(), calls)}
    assert statuses == {200, 202}
    with connection.cursor() as cursor:
        cursor.execute(_SESSIONS, ["coupons web%"])
        (sessions,) = cursor.fetchone()
    assert 3 <= sessions <= MOST
