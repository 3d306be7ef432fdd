"""The list beside Kafka: who goes which way, and what it takes for nobody to get lost there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.processes.lifecycle import StopFlag
from coupons import issue_worker
from coupons.admission.gate.redis_keys import keys
from coupons.coupon_cache import coupon_cache
from coupons.issue_worker import IssueWorker
from coupons.models import Coupon, IssueRequest, Reservation, RolloutChange, UserCoupon
from coupons.redis_queue import enqueue, queue
from coupons.redis_queue.enqueue import enqueue_again
from coupons.redis_queue.queue import QUEUE, RedisQueue
from coupons.rollout import uses_redis_queue
from coupons.schemas import Accepted
from devstack import wait_until
from devstack.ports import free_port
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox.pruning import prune
from kafka_bridge.outbox.writing import anything_unpublished
from tests.support.messages import message
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import accept, answer, ask, assert_invariants, at_once, crowd, gate_of, issue, stock

pytestmark = pytest.mark.django_db(transaction=True)

MakeGate = Callable[..., Coupon]


@pytest.fixture
def make_gate(make_coupon: Callable[..., Coupon]) -> MakeGate:
    return partial(make_coupon, admission="gate")


@pytest.fixture
def everybody(db: None) -> None:
    set_share(100)


@pytest.fixture
def nothing_is_pushed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_worker, "enqueue_again", lambda older_than_seconds, limit: 0)


@pytest.fixture
def looks_around_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_worker, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(issue_worker, "_LOST_AFTER_SECONDS", 0.0)


def set_share(percent: float | None, coupon: Coupon | None = None) -> None:
    """Give the worker so many percent of the users, of one coupon or in general; None takes the flag away."""
    flag = f"issue-worker-{coupon.coupon_type}" if coupon else "issue-worker"
    RolloutChange.objects.create(flag=flag, percent=percent)
    coupon_cache.clear()  # as it does by itself within a second


def in_list() -> list[str]:
    return [text.decode() for text in get_redis_connection("default").lrange(QUEUE, 0, -1)]


def by_worker() -> set[int]:
    """The users whose requests are under way through the list."""
    return set(Reservation.objects.filter(by_worker=True).values_list("user_id", flat=True))


def work(worker: IssueWorker | None = None) -> None:
    """A worker decides everything that it finds."""
    worker = worker or IssueWorker()
    while worker.claim_and_handle(StopFlag()):
        pass


def issue_by_kafka() -> None:
    """The relay and the issuer do what is theirs."""
    rows = list(OutboxMessage.objects.filter(published_at=None, event_type="coupon.issue.requested.v1").order_by("id"))
    issue([message(bytes(row.payload or b"")) for row in rows])
    OutboxMessage.objects.filter(id__in=[row.id for row in rows]).update(published_at="2026-01-01T00:00:00Z")


def flush() -> None:
    get_redis_connection("default").flushdb()


def nobody() -> Redis:
    """A client of a Redis that is not there."""
    return Redis(port=free_port(), retry=Retry(NoBackoff(), 0))


def kill(worker: IssueWorker) -> None:
    """Let the time run out after which a worker that says nothing counts as dead."""
    get_redis_connection("default").delete(queue._alive(worker._queue._id))


def killed_with(batch: int) -> IssueWorker:
    """A worker that took so many requests and was killed before it decided them."""
    worker = IssueWorker()
    assert len(worker._queue.claim(batch)[0]) == batch
    kill(worker)
    return worker


def succeeded() -> int:
    return IssueRequest.objects.filter(status="SUCCESS").count()


# Who goes which way


def test_without_a_flag_everything_goes_through_kafka(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    assert (in_list(), by_worker()) == ([], set())
    assert OutboxMessage.objects.get().published_at is None


@pytest.mark.usefixtures("everybody")
def test_with_all_of_the_share_nothing_goes_through_kafka(make_gate: MakeGate) -> None:
    accepted = accept(make_gate(), 1)
    assert in_list() == [str(accepted.request_id)]
    assert not anything_unpublished()
    row = OutboxMessage.objects.get()
    assert (row.topic, row.event_id) == ("issue-worker", accepted.request_id)


def test_a_third_of_the_users_goes_to_the_worker_and_always_the_same_ones(make_gate: MakeGate) -> None:
    set_share(30)
    first, second = make_gate(total_quantity=300), make_gate(total_quantity=300)
    assert crowd(first, range(1, 201)) == {"accepted": 200}
    chosen = by_worker()
    assert 40 <= len(chosen) <= 80
    Reservation.objects.all().delete()
    coupon_cache.clear()
    crowd(second, range(1, 201))
    assert by_worker() == chosen


def test_shares_are_met_and_a_larger_one_keeps_the_users_of_a_smaller_one() -> None:
    users = {share: {user for user in range(1, 20_001) if uses_redis_queue(user, share)} for share in (0, 5, 300, 999)}
    assert users[0] < users[5] < users[300] < users[999]
    assert [round(len(chosen) / 20_000, 2) for chosen in users.values()] == [0, 0.01, 0.3, 1]
    assert all(uses_redis_queue(user, 1000) for user in (1, 2**63 - 1))


def test_the_flag_of_a_coupon_wins_over_the_general_one(make_gate: MakeGate) -> None:
    own, other = make_gate(), make_gate()
    set_share(100)
    set_share(0, own)
    accept(own, 1)
    accept(other, 2)
    assert by_worker() == {2}
    set_share(0)
    set_share(100, own)
    accept(own, 3)
    accept(other, 4)
    assert by_worker() == {2, 3}


def test_a_flag_that_says_nothing_is_none(make_gate: MakeGate) -> None:
    own = make_gate()
    set_share(100)
    set_share(None)
    accept(make_gate(), 1)
    assert by_worker() == set()
    set_share(0, own)
    set_share(100)
    set_share(None, own)
    accept(own, 2)
    assert by_worker() == {2}


@pytest.mark.usefixtures("everybody")
@pytest.mark.parametrize("admission", ["queue", "reserve"])
def test_only_the_gate_has_a_worker(admission: str, make_coupon: Callable[..., Coupon]) -> None:
    accept(make_coupon(admission=admission), 1)
    assert in_list() == []
    assert anything_unpublished()


def test_the_way_back_is_nought_percent(make_gate: MakeGate) -> None:
    coupon = make_gate()
    set_share(100)
    accept(coupon, 1)
    set_share(0)
    accept(coupon, 2)
    assert by_worker() == {1}
    work()
    issue_by_kafka()
    assert stock(coupon) == (0, 2)


@pytest.mark.usefixtures("everybody")
def test_what_waits_for_a_worker_can_be_handed_over_to_kafka(make_gate: MakeGate) -> None:
    """With the statements of docs/operations.md, which name the worker's mark and Kafka's topic."""
    coupon = make_gate()
    accept(coupon, 1)
    work()
    accept(coupon, 2)
    manual = (settings.BASE_DIR / "docs/operations.md").read_text()
    [handing_over] = re.findall(r"```sql\n(BEGIN;.*?COMMIT;)\n", manual, re.DOTALL)
    with connection.cursor() as cursor:
        cursor.execute(handing_over)
    assert by_worker() == set()
    work()
    assert stock(coupon) == (0, 1)
    issue_by_kafka()
    assert stock(coupon) == (0, 2)
    assert set(IssueRequest.objects.values_list("partition", flat=True)) == {-1, 0}


def test_the_same_key_is_the_same_request_whatever_becomes_of_the_share(make_gate: MakeGate) -> None:
    coupon = make_gate()
    set_share(100)
    accepted = accept(coupon, 1, "k")
    set_share(0)
    assert accept(coupon, 1, "k") == accepted
    assert OutboxMessage.objects.count() == 1
    work()
    set_share(100)
    assert accept(coupon, 1, "k").request_id == accepted.request_id
    work()
    assert stock(coupon) == (0, 1)


def test_a_request_costs_no_query_more_than_without_flags(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    with CaptureQueriesContext(connection) as through_kafka:
        accept(coupon, 2)
    set_share(100)
    accept(coupon, 3)
    with CaptureQueriesContext(connection) as through_the_list:
        accept(coupon, 4)
    assert len(through_the_list) == len(through_kafka)


# What is decided


@pytest.mark.usefixtures("everybody")
def test_a_request_is_decided_and_the_gate_hears_of_it(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accepted = accept(coupon, 1)
    row = OutboxMessage.objects.get()
    work()
    ended = IssueRequest.objects.get()
    assert (ended.request_id, ended.status, ended.source) == (accepted.request_id, "SUCCESS", "API")
    assert (ended.topic, ended.partition, ended.offset) == ("coupon-issue-request", -1, row.id)
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
    redis.rpush(queue._backup(b"\xff\x00"), "garbage")
    accepted = accept(coupon, 1)
    assert queue.all_ids() == {b"garbage", str(accepted.request_id).encode()}
    redis.sadd(queue.WORKERS, "of another kind")
    redis.set(queue._backup(b"of another kind"), "garbage")
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


# Both ways at once


def until(done: threading.Event, work: Callable[[], None]) -> None:
    """Do it again and again, and once more at the end, in a session of its own."""
    try:
        while not done.wait(0.002):
            work()
        work()
    finally:
        connection.close()


def with_everybody_at_work(during: Callable[[], None]) -> None:
    """Two workers and Kafka's issuer decide while ``during`` runs."""
    done = threading.Event()
    workers = [IssueWorker(batch_size=7), IssueWorker(batch_size=5)]
    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(until, done, partial(work, worker)) for worker in workers]
        busy.append(pool.submit(until, done, issue_by_kafka))
        try:
            during()
        finally:
            done.set()
        for one in busy:
            one.result(60)


@pytest.mark.usefixtures("looks_around_at_once")
def test_both_ways_at_once_give_away_exactly_fifty(make_gate: MakeGate) -> None:
    set_share(50)
    coupon = make_gate(total_quantity=50)
    told: dict[str, int] = {}
    with_everybody_at_work(lambda: told.update(crowd(coupon, range(1, 301))))
    assert told == {"accepted": 50, "sold_out": 250}
    assert stock(coupon) == (0, 50)
    assert succeeded() == UserCoupon.objects.count() == 50
    assert {-1, 0} == set(IssueRequest.objects.values_list("partition", flat=True))
    assert_invariants()


def test_both_ways_at_once_give_away_no_more_than_there_is_when_the_gate_lets_in_too_many(make_gate: MakeGate) -> None:
    set_share(50)
    coupon = make_gate(total_quantity=50)
    crowd(coupon, range(1, 51))
    get_redis_connection("default").hdel(keys(coupon.id).holders, *range(1, 31))  # the gate forgets thirty
    assert crowd(coupon, range(51, 81)) == {"accepted": 30}
    with_everybody_at_work(lambda: None)
    assert stock(coupon) == (0, 50)
    assert succeeded() == 50
    assert IssueRequest.objects.filter(reason="SOLD_OUT").count() == 30
    assert_invariants()


@pytest.mark.usefixtures("looks_around_at_once")
def test_the_share_is_changed_in_the_middle_of_a_burst(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1000)

    def burst() -> None:
        for start, percent in [(0, 0), (100, 100), (200, 30), (300, 0)]:
            changed = partial(set_share, percent)
            calls = [partial(accept, coupon, user_id) for user_id in range(start + 1, start + 101)]
            at_once([*calls[:50], changed, *calls[50:]])

    with_everybody_at_work(burst)
    work()
    issue_by_kafka()
    assert succeeded() == IssueRequest.objects.count() == 400
    assert stock(coupon) == (0, 400)
    assert {-1, 0} == set(IssueRequest.objects.values_list("partition", flat=True))
    assert_invariants()


# What may go wrong


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
def test_without_the_backup_list_a_killed_worker_would_lose_its_requests(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_CLAIM", queue._CLAIM.replace("redis.call('RPUSH', KEYS[2], request)", ""))
    coupon = make_gate()
    for user_id in range(1, 8):
        accept(coupon, user_id)
    killed_with(4)
    work()
    assert stock(coupon) == (0, 3)


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
        kill(hanging)
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
    worker._queue.claim(3)
    flush()
    work(worker)
    assert stock(coupon) == (0, 10)
    assert [ask(coupon, user_id) for user_id in (1, 11)] == ["already_issued", "accepted"]


@pytest.mark.usefixtures("everybody", "looks_around_at_once", "nothing_is_pushed_again")
def test_without_pushing_again_a_flushed_redis_would_lose_everybody(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    flush()
    work()
    assert not IssueRequest.objects.exists()


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
        patch.setattr(queue, "redis", lambda: away)
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


# A worker's own life


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
            patch.setattr(queue, "redis", away)
            accepted = accept(coupon, 1)
            wait_until(lambda: len(calls) >= 5, 10, "Redis was not asked")
        wait_until(lambda: succeeded() == 1, 10, "not decided")
    assert answer(accepted.request_id) == ("SUCCESS", None)
