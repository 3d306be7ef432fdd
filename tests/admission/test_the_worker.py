"""What the issue worker decides, and how it starts and stops."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import OperationalError
from django_redis import get_redis_connection
from redis import Redis

from common.processes.lifecycle import StopFlag
from coupons import issue_worker
from coupons.issue_worker import IssueWorker
from coupons.models import Coupon, IssueRequest, Reservation
from coupons.redis_queue import queue
from coupons.redis_queue.enqueue import enqueue_again
from coupons.redis_queue.queue import QUEUE
from coupons.schemas import Accepted
from devstack import wait_until
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox.pruning import prune
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import MakeGate, accept, answer, assert_invariants, gate_of, set_share, stock
from .workers import (
    in_list,
    nobody,
    succeeded,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.usefixtures("everybody")
def test_a_request_is_decided_and_the_gate_hears_of_it(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accepted = accept(coupon, 1)
    row = OutboxMessage.objects.get()
    work()
    ended = IssueRequest.objects.get()
    assert (ended.request_id, ended.status, ended.source) == (accepted.request_id, "SUCCESS", "API")
    assert (ended.topic, ended.partition, ended.offset) == ("coupon-issue-request", -1, row.id)
    assert ended.published_at is None
    told = OutboxMessage.objects.get(event_type="coupon.issue.succeeded.v1")
    assert told.published_at is None
    assert told.traceparent == row.traceparent
    assert gate_of(coupon) == ({1}, set())
    assert in_list() == []
    assert_invariants()


@pytest.mark.usefixtures("everybody")
def test_requests_are_decided_in_the_order_of_the_list(make_gate: MakeGate) -> None:
    coupon = make_gate()
    for user_id in range(1, 8):
        accept(coupon, user_id)
    work(IssueWorker(batch_size=3))
    decided = IssueRequest.objects.order_by("-remaining").values_list("user_id", flat=True)
    assert list(decided) == list(range(1, 8))


@pytest.mark.usefixtures("everybody")
def test_pruning_leaves_a_request_that_waits_in_the_list(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    OutboxMessage.objects.update(published_at="2020-01-01T00:00:00Z", created_at="2020-01-01T00:00:00Z")
    prune(timedelta(hours=1), StopFlag())
    work()
    assert succeeded() == 1


@pytest.mark.usefixtures("everybody")
def test_a_request_that_nobody_can_read_becomes_a_dead_letter_and_fails(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=3)
    bad, *good = [accept(coupon, user_id) for user_id in (1, 2, 3)]
    OutboxMessage.objects.filter(event_id=bad.request_id).update(payload=b"{")
    work()
    assert answer(bad.request_id) == ("FAILED", "ERROR")
    assert [answer(one.request_id) for one in good] == [("SUCCESS", None)] * 2
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, letter.event_id, letter.partition) == ("issue", bad.request_id, -1)
    assert not Reservation.objects.exists()
    assert OutboxMessage.objects.filter(topic="coupon-issue-request.DLT", published_at=None).count() == 1


@pytest.mark.usefixtures("everybody")
def test_entries_that_are_no_request_of_the_workers_are_dropped(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accepted = accept(coupon, 1)
    set_share(0)
    of_kafka = accept(coupon, 2)
    junk = ["", "\0", "no id", str(of_kafka.request_id), "0190a5b0-0000-7000-8000-000000000000"]
    get_redis_connection("default").lpush(QUEUE, *junk, b"\xff")
    work()
    assert set(IssueRequest.objects.values_list("request_id", flat=True)) == {accepted.request_id}
    assert in_list() == []


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
@pytest.mark.parametrize("name", [queue.QUEUE, queue.WORKERS])
def test_a_key_of_another_kind_in_place_of_the_list_is_dropped(name: str, make_gate: MakeGate) -> None:
    coupon = make_gate()
    get_redis_connection("default").set(name, "garbage")
    accept(coupon, 1)
    work()
    assert stock(coupon) == (0, 1)


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_workers_that_never_were_keep_nobody_from_work(make_gate: MakeGate) -> None:
    coupon = make_gate()
    redis = get_redis_connection("default")
    redis.sadd(queue.WORKERS, b"\xff\x00")
    redis.rpush(b"{issue-worker}:backup:\xff\x00", "garbage")
    accepted = accept(coupon, 1)
    assert queue.all_ids() == {b"garbage", str(accepted.request_id).encode()}
    redis.sadd(queue.WORKERS, "of another kind")
    redis.set("{issue-worker}:backup:of another kind", "garbage")
    work()
    assert stock(coupon) == (0, 1)
    assert redis.keys("{issue-worker}:backup:*") == []


@pytest.mark.usefixtures("everybody")
def test_what_is_pushed_twice_is_decided_once(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    assert [enqueue_again(0, 10), enqueue_again(0, 10)] == [1, 1]
    work(IssueWorker(batch_size=1))
    assert stock(coupon) == (0, 1)
    assert OutboxMessage.objects.filter(event_type="coupon.issue.succeeded.v1").count() == 1


class Running:
    """A worker's loop in a thread; leaving the block asks it to stop."""

    def __init__(self) -> None:
        self.stop = StopFlag()
        self._worker = IssueWorker(batch_size=4)

    def __enter__(self) -> Running:
        self._future = in_another_session(lambda: self._worker.run(self.stop))
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop.request()
        self._future.result(20)


def accept_ten(coupon: Coupon) -> list[Accepted]:
    return [accept(coupon, user_id) for user_id in range(1, 11)]


@pytest.mark.usefixtures("everybody")
def test_a_worker_that_is_asked_to_stop_finishes_its_batch_and_leaves_the_rest(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept_ten(coupon)
    with OpenTransaction(lambda: list(Coupon.objects.select_for_update())) as lock, Running() as running:
        wait_until_blocked()
        running.stop.request()
        lock.commit()
    assert stock(coupon) == (0, 4)
    assert len(in_list()) == 6


@pytest.mark.usefixtures("everybody", "nothing_is_pushed_again")
def test_a_batch_that_fails_for_a_service_waits_in_hand_and_is_put_back_at_the_stop(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    accepted = accept_ten(coupon)
    tries: list[object] = []

    def away(request_ids: object) -> set[object]:
        tries.append(request_ids)
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(issue_worker, "find_decided", away)
        patch.setattr(settings, "CONSUMER_BACKOFF_SECONDS", 0.02)
        with Running():
            wait_until(lambda: len(tries) >= 3, 10, "not tried again")
    assert tries[0] == tries[1] == [one.request_id for one in accepted[:4]]
    assert in_list() == [str(one.request_id) for one in accepted]
    work()
    assert stock(coupon) == (0, 10)


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_a_worker_outlives_a_redis_that_is_away(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate()
    calls: list[None] = []

    def away() -> Redis:
        calls.append(None)
        return unused

    unused = nobody()
    monkeypatch.setattr(settings, "CONSUMER_BACKOFF_SECONDS", 0.02)
    with Running():
        with monkeypatch.context() as patch:
            patch.setattr(queue, "redis_connection", away)
            patch.setattr(queue, "run_script", lambda *_: away().ping())
            accepted = accept(coupon, 1)
            wait_until(lambda: len(calls) >= 5, 10, "Redis was not asked")
        wait_until(lambda: succeeded() == 1, 10, "not decided")
    assert answer(accepted.request_id) == ("SUCCESS", None)
