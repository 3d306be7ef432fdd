"""The issue worker as a process: killed, stopped and robbed of its list in the middle of a burst."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest
from django.db import transaction
from django_redis import get_redis_connection

from coupons.models import Coupon, IssueRequest, Reservation, RolloutChange
from coupons.redis_queue.queue import QUEUE
from devstack import wait_until
from kafka_bridge.models import ProcessHeartbeat
from tests.processes.conftest import (
    MOMENT_SECONDS,
    assert_in_the_middle_of,
    when_accepted,
    when_issued,
    when_waiting_for_a_lock,
)
from tests.support.burst import Burst
from tests.support.factories import CouponFactory
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service, kill_group

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

USERS = 600

Begin = Callable[[], Burst]


@pytest.fixture
def coupons(transactional_db: None) -> list[Coupon]:
    """Two coupons behind gates, with enough for all: so every user must get one in the end."""
    return CouponFactory.create_batch(2, admission="gate", total_quantity=USERS)


@pytest.fixture
def begin(burst: Callable[..., Burst]) -> Begin:
    return lambda: burst(requests=USERS, users=USERS)


def set_share(percent: int) -> None:
    RolloutChange.objects.create(flag="issue-worker", percent=percent)


def decided_by_worker() -> int:
    return IssueRequest.objects.filter(partition=-1).count()


def test_both_ways_at_once_while_the_share_is_changed(
    service: Service, begin: Begin, coupons: Sequence[Coupon]
) -> None:
    for role in ("relay", "issuer", "worker"):
        service.start(role)
    set_share(50)
    crowd = begin()
    for accepted, percent in [(100, 100), (200, 30), (300, 0)]:
        when_accepted(crowd, accepted)
        set_share(percent)
    assert_guarantees_hold(crowd, coupons)
    assert 0 < decided_by_worker() < USERS


def test_a_worker_killed_in_its_transaction_and_after_it_loses_nobody(
    service: Service, begin: Begin, coupons: Sequence[Coupon]
) -> None:
    set_share(100)
    service.start("relay")
    with transaction.atomic():
        assert list(Coupon.objects.select_for_update())
        worker = service.start("worker", "--batch-size", "50")
        crowd = begin()
        when_waiting_for_a_lock("issue_worker")
        kill_group(worker)
    worker.start()
    when_issued(50)
    kill_group(worker)
    assert_in_the_middle_of(crowd)
    worker.start()
    assert_guarantees_hold(crowd, coupons)
    assert decided_by_worker() == USERS


def test_a_flushed_redis_loses_nobody(service: Service, begin: Begin, coupons: Sequence[Coupon]) -> None:
    set_share(100)
    service.start("relay")
    with transaction.atomic():
        assert list(Coupon.objects.select_for_update())
        service.start("worker", "--batch-size", "50")
        service.start("worker", "--batch-size", "50", name="second worker")
        crowd = begin()
        when_accepted(crowd, 200)
        get_redis_connection("default").flushdb()
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    assert not Reservation.objects.exists()


def test_a_worker_that_is_asked_to_stop_ends_well_and_leaves_nothing_in_its_hands(
    service: Service, begin: Begin, coupons: Sequence[Coupon]
) -> None:
    set_share(100)
    service.start("relay")
    worker = service.start("worker", "--batch-size", "20")
    crowd = begin()
    when_issued(20)
    heartbeats = ProcessHeartbeat.objects.filter(role="worker")
    wait_until(heartbeats.exists, MOMENT_SECONDS, "no heartbeat", 0.01)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert not heartbeats.exists()
    assert_in_the_middle_of(crowd)
    redis = get_redis_connection("default")
    assert redis.keys("{issue-worker}:backup:*") == []
    crowd.finish()
    assert redis.llen(QUEUE) == USERS - decided_by_worker()
    worker.start()
    assert_guarantees_hold(crowd, coupons)
