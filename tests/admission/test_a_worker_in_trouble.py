"""What it takes for no request to get lost in the Redis queue."""

from __future__ import annotations

from functools import partial

import pytest
from django.db import connection
from django_redis import get_redis_connection

from common.processes.lifecycle import StopFlag
from coupons.issue_worker import IssueWorker
from coupons.models import Coupon, IssueRequest, Reservation
from coupons.redis_queue import enqueue, queue
from coupons.redis_queue.enqueue import enqueue_again
from coupons.redis_queue.queue import RedisQueue
from kafka_bridge.models import OutboxMessage
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import MakeGate, accept, answer, ask, assert_invariants, at_once, set_share, stock
from .gates import flush
from .workers import (
    in_list,
    killed_with,
    nobody,
    take_for_dead,
    with_everybody_at_work,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.usefixtures("everybody", "nothing_is_pushed_again", "looks_around_at_once")
def test_what_a_killed_worker_had_in_hand_is_taken_over(make_gate: MakeGate) -> None:
    coupon = make_gate()
    users = [accept(coupon, user_id).user_id for user_id in range(1, 8)]
    killed_with(4)
    work()
    assert list(IssueRequest.objects.order_by("-remaining").values_list("user_id", flat=True)) == users
    assert stock(coupon) == (0, 7)
    assert get_redis_connection("default").keys("{issue-worker}:backup:*") == []


@pytest.mark.usefixtures("everybody", "nothing_is_pushed_again", "looks_around_at_once")
def test_what_a_living_worker_has_in_hand_is_left_to_it(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    living = RedisQueue()
    taken, _ = living.claim(10)
    work()
    assert not IssueRequest.objects.exists()
    assert living.claim(10)[0] == taken


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_a_worker_that_was_taken_for_dead_gives_nobody_a_second_coupon(make_gate: MakeGate) -> None:
    coupon = make_gate()
    for user_id in range(1, 4):
        accept(coupon, user_id)
    hanging = IssueWorker()
    with OpenTransaction(lambda: list(Coupon.objects.select_for_update())) as lock:
        held = in_another_session(lambda: hanging.claim_and_handle(StopFlag()))
        wait_until_blocked(beside=held)
        take_for_dead()
        other = in_another_session(work)
        wait_until_blocked(2, beside=other)
        lock.commit()
        held.result(10)
        other.result(10)
    assert stock(coupon) == (0, 3)
    assert OutboxMessage.objects.filter(event_type="coupon.issue.succeeded.v1").count() == 3
    assert_invariants()


@pytest.mark.usefixtures("everybody")
def test_finishing_late_removes_nothing_that_was_taken_since(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    worker = RedisQueue()
    first, _ = worker.claim(10)
    worker.ack(first)
    accept(coupon, 2)
    second, _ = worker.claim(10)
    worker.ack(first)
    assert worker.claim(10)[0] == second != first


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_a_redis_that_is_flushed_loses_nobody(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=20)
    for user_id in range(1, 11):
        accept(coupon, user_id)
    worker = IssueWorker(batch_size=3)
    worker.claim_and_handle(StopFlag())
    assert len(RedisQueue().claim(3)[0]) == 3
    flush()
    work(worker)
    assert stock(coupon) == (0, 10)
    assert [ask(coupon, user_id) for user_id in (1, 11)] == ["already_issued", "accepted"]


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_a_redis_that_is_flushed_again_and_again_loses_nobody(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1000)

    def accept_and_flush() -> None:
        def insist(user_id: int) -> None:
            while ask(coupon, user_id) == "unavailable":
                pass

        at_once([one for user_id in range(1, 201) for one in (partial(insist, user_id), flush)])

    with_everybody_at_work(accept_and_flush)
    work()
    assert stock(coupon) == (0, 200)
    assert not Reservation.objects.exists()
    assert_invariants()


@pytest.mark.usefixtures("everybody", "looks_around_at_once")
def test_a_request_is_accepted_though_redis_is_away_at_the_push(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    with monkeypatch.context() as patch:
        away = nobody()
        patch.setattr(queue, "redis_connection", lambda: away)
        accepted = accept(coupon, 1)
    assert in_list() == []
    work()
    assert answer(accepted.request_id) == ("SUCCESS", None)


@pytest.mark.usefixtures("everybody")
def test_young_requests_are_not_pushed_again_and_only_so_many_are(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accepted = [accept(coupon, user_id) for user_id in range(1, 4)]
    set_share(0)
    accept(coupon, 4)  # through Kafka, which is none of the worker's business
    flush()
    assert enqueue_again(60, 10) == 0
    assert enqueue_again(0, 2) == 2
    assert in_list() == [str(one.request_id) for one in accepted[:2]]
    assert enqueue_again(0, 10) == 3


def test_the_search_for_what_was_lost_reads_an_index_of_the_workers_own_requests(make_gate: MakeGate) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(f"EXPLAIN {enqueue._UNDECIDED}", [5, 10])
        plan = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute("RESET enable_seqscan")
    assert "Index Scan using reservation_by_worker" in plan
