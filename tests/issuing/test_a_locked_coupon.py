"""A session that hangs with a coupon's row locked stops that coupon's partition, and no other of the same issuer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import Producer
from django.conf import settings
from django.db import connection
from pytest_django import Settings

from common.postgres import lock_limits
from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming import retrying_partitions
from kafka_bridge.models import Alert, DeadLetter, OutboxMessage
from kafka_bridge.registry import prefixed
from tests.support.kafka import committed_offsets
from tests.support.messages import request_body
from tests.support.rebalance import consume_in_background
from tests.support.threads import OpenTransaction, lock, wait_until_blocked

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "redis_flushed")]

MakeCoupon = Callable[..., Coupon]
TOPIC = "coupon-issue-request"
LOCKED, OTHER = 0, 1


@pytest.fixture(autouse=True)
def _short_pauses(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    monkeypatch.setattr(lock_limits, "LOCK_SECONDS", 0.5)


@pytest.fixture
def issuer(topics: str) -> Iterator[None]:
    """One consumer thread, which gets every partition."""
    stop = StopFlag()
    running = consume_in_background(ISSUE, stop)
    yield
    stop.request()
    running.result(30)


def ask(coupon: Coupon, user_ids: Sequence[int], partition: int) -> None:
    producer = Producer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    for user_id in user_ids:
        producer.produce(prefixed(TOPIC), json.dumps(request_body(coupon, user_id)).encode(), partition=partition)
    assert producer.flush(30) == 0


def locked(coupon: Coupon) -> OpenTransaction:
    return lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", coupon.id)


def decided(coupon: Coupon) -> list[tuple[int | None, str | None]]:
    """The users with a result and the reason, in the order of their offsets."""
    return list(IssueRequest.objects.filter(coupon=coupon).order_by("offset").values_list("user_id", "reason"))


def wait_for_results(coupon: Coupon, quantity: int) -> None:
    wait_until(lambda: len(decided(coupon)) == quantity, 15, f"{coupon} has {len(decided(coupon))} results")


@pytest.mark.usefixtures("issuer")
def test_other_partitions_of_the_same_thread_go_on_beside_a_locked_coupon(make_coupon: MakeCoupon) -> None:
    hot, neighbour, other = make_coupon(total_quantity=2), make_coupon(), make_coupon()
    with locked(hot) as hung:
        ask(hot, [1, 2, 1, 3], LOCKED)
        ask(neighbour, [7], LOCKED)
        wait_until_blocked()
        for user_ids in ([11, 12], [13]):
            ask(other, user_ids, OTHER)
            wait_for_results(other, user_ids[-1] - 10)
        wait_until(lambda: committed_offsets(ISSUE.group_id, TOPIC)[OTHER] == 3, 10, "the offset is not committed")
        # Nothing of the locked partition is skipped, not even for a coupon that is not locked.
        assert decided(hot) == decided(neighbour) == []
        assert committed_offsets(ISSUE.group_id, TOPIC)[LOCKED] == 0
        hung.rollback()
    wait_until(lambda: group_lag(ISSUE.group_id, ISSUE.topics) == 0, 15, "the locked partition does not go on")
    assert decided(hot) == [(1, None), (2, None), (1, "ALREADY_ISSUED"), (3, "SOLD_OUT")]
    assert decided(neighbour) == [(7, None)]
    assert sorted(UserCoupon.objects.values_list("user_id", flat=True)) == [1, 2, 7, 11, 12, 13]
    assert (OutboxMessage.objects.count(), DeadLetter.objects.count()) == (8, 0)


@pytest.mark.usefixtures("issuer")
def test_many_locked_partitions_leave_time_for_the_last(make_coupon: MakeCoupon) -> None:
    hot = [make_coupon() for _ in range(4)]
    free = make_coupon()
    with lock("SELECT FROM coupons_coupon WHERE id <> %s FOR UPDATE", free.id):
        for partition, coupon in enumerate(hot):
            ask(coupon, [1], partition)
        wait_until_blocked()
        for user_id in range(1, 6):
            ask(free, [user_id], 4)
            wait_for_results(free, user_id)
        assert [decided(coupon) for coupon in hot] == [[], [], [], []]
    for coupon in hot:
        wait_for_results(coupon, 1)


@pytest.mark.usefixtures("issuer")
def test_the_alert_names_the_lock_and_the_session_that_hangs(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 1.0)
    coupon = make_coupon()
    with locked(coupon) as hung:
        ask(coupon, [1], LOCKED)
        wait_until(Alert.objects.exists, 15, "no alert was opened")
        with connection.cursor() as cursor:
            # Another lane has sessions in a database of its own.
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
            )
            pids = [pid for (pid,) in cursor.fetchall()]
        alert = Alert.objects.get()
        assert (alert.rule, alert.severity) == ("waiting-issue", "critical")
        assert f"{TOPIC}[{LOCKED}]@0" in alert.summary
        assert 'lock timeout; while locking tuple (0,1) in relation "coupons_coupon"; ' in alert.summary
        assert any(f"session {pid} (" in alert.summary for pid in pids)
        assert "idle in transaction) has been in its transaction for " in alert.summary
        hung.rollback()
    wait_for_results(coupon, 1)
    wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 15, "the alert does not end")
