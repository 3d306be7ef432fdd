"""What the gate alone can do: spare PostgreSQL, lose everything, and find its way back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import DjangoAssertNumQueries
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from coupons import metrics
from coupons.admission import ADMISSIONS, AdmissionRequest, FinishedRequest
from coupons.admission.gate import admission, load, redis_keys, releasing, store
from coupons.admission.gate.redis_keys import keys, lock_key
from coupons.admission.gate.releasing import release
from coupons.consumer_groups import RESULTS
from coupons.coupon_cache import coupon_cache
from coupons.errors import SoldOut
from coupons.issuance import accept_group, finish
from coupons.issuance.accept import incoming_request
from coupons.models import Coupon, IssueRequest, UserCoupon
from coupons.redemption import coupon_hold, coupon_refund, coupon_use
from devstack.ports import free_port
from devstack.processes import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import insert_new_rows
from tests.support.messages import message
from tests.support.threads import in_another_session

from .conftest import (
    accept,
    answer,
    ask,
    assert_invariants,
    at_once,
    crowd,
    gate_of,
    issue,
    messages_on_their_way,
    stock,
)

pytestmark = pytest.mark.django_db(transaction=True)

MakeGate = Callable[..., Coupon]


@pytest.fixture
def make_gate(make_coupon: Callable[..., Coupon]) -> MakeGate:
    return partial(make_coupon, admission="gate")


def holders() -> set[int]:
    return set(UserCoupon.objects.values_list("user_id", flat=True))


def candidate(coupon: Coupon, user_id: int) -> AdmissionRequest:
    return AdmissionRequest(uuid7(), user_id, coupon.id, coupon.total_quantity)


def flush() -> None:
    get_redis_connection("default").flushdb()


def forget_user(coupon: Coupon, user_id: int) -> None:
    """The gate loses somebody who has a piece."""
    get_redis_connection("default").hdel(keys(coupon.id).holders, user_id)


# What a decision costs


def test_a_refusal_costs_postgresql_nothing(
    make_gate: MakeGate, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    coupon = make_gate(total_quantity=1)
    accept(coupon, 1)
    with django_assert_num_queries(0):
        assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "sold_out"]


def test_a_group_of_requests_is_one_call(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=100)
    accept(coupon, 1)
    calls: list[str] = []

    def run(name: str, *args: Any) -> Any:
        calls.append(name)
        return redis_keys.run(name, *args)

    monkeypatch.setattr(admission, "run", run)
    outcomes = ADMISSIONS["gate"].admit([candidate(coupon, user_id) for user_id in range(1, 201)])
    assert calls == ["admit.lua"]
    assert [outcome.sequence for outcome in outcomes if outcome.newly_reserved] == list(range(2, 101))


def keyed(coupon: Coupon, user_id: int, key: str) -> accept_group.IncomingRequest:
    """What a request under a key puts into its line."""
    cached = coupon_cache.get(coupon.id)
    assert cached is not None
    return incoming_request(cached, user_id=user_id, caller_id=user_id, idempotency_key=key, traceparent="")


def test_refusals_of_one_moment_cost_one_read_if_keys_have_to_be_looked_up(
    make_gate: MakeGate, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    coupon = make_gate(total_quantity=1)
    first = accept(coupon, 1, "k")
    group = [keyed(coupon, user_id, "k") for user_id in range(1, 101)]
    with django_assert_num_queries(1):
        repeat, *others = accept_group.accept_group(ADMISSIONS["gate"], group)
    assert repeat.existing is not None
    assert repeat.existing.request_id == first.request_id
    assert [(one.refusal, one.existing) for one in others] == [(SoldOut, None)] * 99


@pytest.mark.parametrize("key", [None, "k"], ids=["without a key", "with a key"])
def test_a_decision_is_one_call_to_redis(key: str | None, make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1, key)
    sent: list[object] = []
    send: Any = AbstractConnection.send_packed_command

    def note_and_send(self: AbstractConnection, command: object, *args: Any, **kwargs: Any) -> None:
        sent.append(command)
        send(self, command, *args, **kwargs)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", note_and_send)
    for user_id, told in [(2, "accepted"), (1, "accepted" if key else "already_issued"), (3, "sold_out")]:
        assert ask(coupon, user_id, key) == told
        assert len(sent) == 1
        sent.clear()


@pytest.mark.usefixtures("every_request_alone")
@pytest.mark.parametrize("decided", [False, True], ids=["under way", "decided"])
def test_who_is_overtaken_by_a_repeat_takes_nothing_from_it(
    decided: bool, make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate let in the first under a key, and the second is the one that writes the row."""
    coupon = make_gate(total_quantity=1)
    write = accept_group._write
    overtaking: list[Any] = []

    def be_overtaken(*args: Any) -> Any:
        monkeypatch.setattr(accept_group, "_write", write)

        def overtake() -> Any:
            accepted = accept(coupon, 1, "k")
            if decided:
                issue()
            return accepted

        overtaking.append(in_another_session(overtake).result(30))
        return write(*args)

    monkeypatch.setattr(accept_group, "_write", be_overtaken)
    assert [accept(coupon, 1, "k")] == overtaking
    assert gate_of(coupon) == ({1}, set() if decided else {1})
    assert ask(coupon, 2) == "sold_out"
    issue()
    assert gate_of(coupon) == ({1}, set())
    assert_invariants()


def test_every_number_of_candidates_is_served(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1500)
    outcomes = ADMISSIONS["gate"].admit([candidate(coupon, user_id) for user_id in range(1, 2001)])
    assert sum(outcome.refusal is None for outcome in outcomes) == 1500


def test_ids_of_64_bits_are_kept_exactly(make_gate: MakeGate) -> None:
    coupon = make_gate()
    users = [2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53]
    assert [ask(coupon, user_id) for user_id in users] == ["accepted"] * 4
    assert gate_of(coupon) == (set(users), set(users))


# Reservations and their end


def test_with_the_coupon_a_reservation_becomes_final(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    assert gate_of(coupon) == ({1}, {1})
    issue()
    assert gate_of(coupon) == ({1}, set())


def test_a_piece_that_others_gave_away_is_taken_in_the_gate_too(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1)
    Coupon.objects.update(admission="queue")
    coupon_cache.clear()
    accept(coupon, 2)
    issue()
    assert gate_of(coupon) == ({1, 2}, set())


def test_a_process_killed_between_gate_and_insert_leaves_what_a_later_release_finds(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1)
    killed = candidate(coupon, 1)
    assert ADMISSIONS["gate"].admit([killed])[0].newly_reserved
    assert ask(coupon, 2) == "sold_out"

    assert store.pending_for(coupon.id, 60, limit=10) == []
    [[found], _, _] = store.look(coupon.id, store.pending_for(coupon.id, 0, limit=10))
    assert (found.request_id, found.user_id) == (killed.request_id, 1)
    assert found.age_seconds is not None
    assert 0 <= found.age_seconds < 60

    ended = [FinishedRequest(killed.request_id, coupon.id, 1, "ERROR")]
    release(ended)
    assert ask(coupon, 2) == "accepted"
    release(ended)
    assert gate_of(coupon) == ({2}, {2})


def test_a_late_release_leaves_the_users_next_request_alone(make_gate: MakeGate) -> None:
    coupon = make_gate()
    first = candidate(coupon, 1)
    ADMISSIONS["gate"].admit([first])
    gone = [FinishedRequest(first.request_id, coupon.id, 1, "ERROR")]
    release(gone)
    accept(coupon, 1)
    release(gone)
    assert gate_of(coupon) == ({1}, {1})


def use_and_refund(piece: UserCoupon) -> None:
    """An order uses the coupon, is paid and cancelled again."""
    with transaction.atomic():
        coupon_hold(user_coupon_id=piece.id, user_id=piece.user_id, order_id=5, amount=1000)
        coupon_use(user_coupon_id=piece.id, order_id=5)
        coupon_refund(user_coupon_id=piece.id, order_id=5)


def test_a_piece_that_a_refund_returned_goes_to_another_user(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())

    assert [ask(coupon, 1), ask(coupon, 2), ask(coupon, 3)] == ["already_issued", "accepted", "sold_out"]
    flush()
    assert [ask(coupon, 1), ask(coupon, 3)] == ["already_issued", "sold_out"]


def tell_results() -> None:
    """The results of all requests reach the group that tells of them, once more or for the first time."""
    rows = OutboxMessage.objects.filter(event_type__in=RESULTS.event_types).order_by("id")
    for row in rows:
        headers = (("ce_type", row.event_type.encode()), ("ce_id", str(row.event_id).encode()))
        told = message(bytes(row.payload or b""), topic=row.topic, headers=headers)
        BatchHandler(RESULTS).handle([told], StopFlag())


def test_what_an_issuer_that_died_did_not_tell_the_gate_the_result_event_does(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    Coupon.objects.update(total_quantity=0)
    with monkeypatch.context() as dead_after_the_commit:
        dead_after_the_commit.setattr(finish, "notify_finished", lambda ended: None)
        issue()
    assert gate_of(coupon) == ({1}, {1})
    tell_results()
    assert gate_of(coupon) == (set(), set())


def test_a_success_that_is_told_late_does_not_take_a_returned_piece_again(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())
    tell_results()
    assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "accepted"]


# A commit that fails


def test_an_answer_lost_at_the_commit_gives_nothing_back(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 3)
    commit = connection.commit

    def commit_and_lose_the_answer() -> None:
        commit()
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "commit", commit_and_lose_the_answer)
        with pytest.raises(OperationalError):
            accept(coupon, 1)
    assert ask(coupon, 2) == "sold_out"
    issue()
    assert holders() == {1, 3}


def test_a_session_that_ends_before_the_commit_gives_back_what_was_taken(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1)
    insert = insert_new_rows

    def insert_and_end_the_session(rows: Any) -> Any:
        inserted = insert(rows)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return inserted

    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", insert_and_end_the_session)
        with pytest.raises(OperationalError):
            accept(coupon, 1)
    connection.close()
    assert ask(coupon, 2) == "accepted"


# Loading


def test_a_gate_that_lost_everything_counts_what_is_issued_and_what_is_under_way(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=3)
    accept(coupon, 1)
    issue()
    under_way = accept(coupon, 2, "k")
    flush()
    assert [ask(coupon, user_id) for user_id in (1, 2, 3, 4)] == [
        "already_issued", "already_issued", "accepted", "sold_out",
    ]  # fmt: skip
    assert accept(coupon, 2, "k") == under_way
    assert gate_of(coupon) == ({1, 2, 3}, {2, 3})
    issue()
    assert holders() == {1, 2, 3}


@pytest.mark.parametrize("part", ["holders", "pending", "revoked"])
@pytest.mark.parametrize("become", ["nothing", "text", "list"])
def test_a_gate_of_which_a_key_is_lost_or_something_else_is_not_loaded(
    part: str, become: str, make_gate: MakeGate
) -> None:
    coupon = make_gate(total_quantity=3, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    accept(coupon, 2)
    issue()
    use_and_refund(UserCoupon.objects.get(user_id=2))
    accept(coupon, 3)
    redis, name = get_redis_connection("default"), getattr(keys(coupon.id), part)
    redis.delete(name)
    if become == "text":
        redis.set(name, "x")
    if become == "list":
        redis.rpush(name, "x")
    assert [ask(coupon, user_id) for user_id in (1, 2, 3, 4, 5)] == [
        "already_issued", "already_issued", "already_issued", "accepted", "sold_out",
    ]  # fmt: skip
    assert gate_of(coupon) == ({1, 3, 4}, {3, 4})


@pytest.mark.parametrize("sequence", ["", "x"])
def test_a_gate_without_a_number_to_go_on_from_is_not_loaded(sequence: str, make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1)
    get_redis_connection("default").hset(keys(coupon.id).holders, "sequence", sequence)
    assert accept(coupon, 2).sequence == 2


def test_a_piece_that_comes_back_while_the_gate_is_loaded_is_not_missed(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    flush()
    store = load._stage

    def store_and_refund(*args: Any) -> None:
        store(*args)
        use_and_refund(UserCoupon.objects.get())

    with monkeypatch.context() as patch:
        patch.setattr(load, "_stage", store_and_refund)
        assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "accepted"]


def test_a_gate_that_nobody_enters_any_more_makes_room(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=3)
    accept(coupon, 1)
    redis = get_redis_connection("default")
    for name in keys(coupon.id):
        redis.expire(name, 60)
    assert ask(coupon, 1) == "already_issued"
    assert {redis.ttl(name) <= 60 for name in keys(coupon.id)} == {True}
    accept(coupon, 2)
    [lifetime] = {redis.pttl(name) // 60_000 for name in keys(coupon.id)}
    assert 23 * 60 < lifetime <= 24 * 60
    redis.delete(*keys(coupon.id))  # as they are all at once by then
    assert [ask(coupon, 2), ask(coupon, 3), ask(coupon, 4)] == ["already_issued", "accepted", "sold_out"]


def test_without_a_gate_what_is_revoked_is_forgotten_soon(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())
    redis = get_redis_connection("default")
    assert [redis.ttl(name) > 60 or redis.ttl(name) == -1 for name in keys(coupon.id)] == [False] * 3


def test_without_counting_what_is_under_way_more_would_be_promised_than_there_is(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1)
    accept(coupon, 1)
    flush()
    uncounting = load._READ.replace("FROM coupons_reservation WHERE", "FROM coupons_reservation WHERE false AND")
    monkeypatch.setattr(load, "_READ", uncounting)
    broken_promise = accept(coupon, 2)
    issue()
    assert answer(broken_promise.request_id) == ("FAILED", "SOLD_OUT")


def loads() -> float:
    return float(metrics.GATE_LOADED._value.get())


@pytest.mark.usefixtures("every_request_alone")
def test_of_many_who_find_no_gate_one_loads_it(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=50)
    before = loads()
    assert crowd(coupon, range(1, 21)).keys() <= {"accepted", "unavailable"}
    assert loads() - before == 1


@pytest.mark.usefixtures("every_request_alone")
def test_without_the_lock_many_would_load_it(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=50)

    def own_lock(coupon_id: int) -> str:
        return f"gate:{{{coupon_id}}}:lock:{threading.get_ident()}"

    together = threading.Barrier(20)
    takers = load._read_holders

    def takers_at_once(coupon_id: int) -> Generator[list[Any]]:
        together.wait(10)
        return takers(coupon_id)

    monkeypatch.setattr(load, "lock_key", own_lock)
    monkeypatch.setattr(load, "_read_holders", takers_at_once)
    before = loads()
    crowd(coupon, range(1, 21))
    assert loads() - before == 20


def test_while_somebody_else_loads_requests_wait_briefly_and_are_told_to_come_back(
    make_gate: MakeGate, client: Client, token: Callable[..., dict[str, str]]
) -> None:
    coupon = make_gate()
    redis = get_redis_connection("default")
    redis.set(lock_key(coupon.id), "somebody", px=60_000)
    path = f"/api/v1/coupons/{coupon.id}/issue-async"
    started_at = time.monotonic()
    refused = client.post(path, content_type="application/json", headers=token(1))
    assert time.monotonic() - started_at < 5
    assert (refused.status_code, refused.json()["code"], refused["Retry-After"]) == (503, "unavailable", "1")

    redis.delete(lock_key(coupon.id))  # as it does by itself when its owner was killed
    assert ask(coupon, 1) == "accepted"


def test_while_its_own_process_loads_a_large_gate_requests_are_told_to_come_back_too(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=4)
    for user_id in (1, 2, 3):
        accept(coupon, user_id)
    flush()
    before, lock = loads(), threading.Lock()
    store = load._stage

    def store_slowly(*args: Any) -> None:
        with lock:
            store(*args)

    monkeypatch.setattr(load, "_CHUNK", 2)
    monkeypatch.setattr(load, "_stage", store_slowly)
    with monkeypatch.context() as patch, lock:
        patch.setattr(admission, "_WAIT_SECONDS", 0.1)
        assert [ask(coupon, 1), ask(coupon, 4)] == ["unavailable"] * 2
    wait_until(lambda: loads() - before == 1, 30, "the gate is not loaded", 0.01)
    assert [ask(coupon, user_id) for user_id in (1, 4, 5)] == ["already_issued", "accepted", "sold_out"]


def test_a_large_gate_is_loaded_again_by_the_next_if_its_loader_fails(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    for user_id in (1, 2, 3):
        accept(coupon, user_id)
    flush()
    monkeypatch.setattr(load, "_CHUNK", 2)
    failed: list[int] = []

    def fail(*args: Any) -> None:
        failed.append(1)
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(load, "_stage", fail)
        patch.setattr(admission, "_WAIT_SECONDS", 0.1)
        # More often than there may be loaders at once.
        wait_until(lambda: ask(coupon, 1) == "unavailable" and len(failed) > 4, 60, "nobody tries any more", 0.01)
    assert ask(coupon, 4) == "accepted"
    assert gate_of(coupon) == ({1, 2, 3, 4}, {1, 2, 3, 4})


def test_a_loader_that_lost_its_lock_leaves_the_gate_to_the_next(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    flush()
    store = load._stage

    def store_and_lose_the_lock(*args: Any) -> None:
        store(*args)
        get_redis_connection("default").delete(lock_key(coupon.id))

    with monkeypatch.context() as patch:
        patch.setattr(load, "_stage", store_and_lose_the_lock)
        assert ask(coupon, 2) == "unavailable"
    assert gate_of(coupon) == (set(), set())
    assert ask(coupon, 2) == "accepted"
    assert gate_of(coupon) == ({1, 2}, {1, 2})


def test_what_ends_while_the_gate_is_loaded_is_not_missed(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=3)
    accept(coupon, 1)
    lost = accept(coupon, 2)
    flush()
    run = redis_keys.run
    batch = messages_on_their_way()

    def issue_and_run(name: str, *args: Any) -> Any:
        if name == "activate.lua":
            UserCoupon.objects.create(coupon=coupon, user_id=2, issued_at="2026-01-01T00:00:00Z")
            Coupon.objects.update(issued=1)
            issue(batch)
        return run(name, *args)

    monkeypatch.setattr(load, "run", issue_and_run)
    accept(coupon, 3)
    assert answer(lost.request_id) == ("FAILED", "ALREADY_ISSUED")
    assert gate_of(coupon) == ({1, 2, 3}, {3})


def test_a_gate_caught_letting_in_too_many_is_loaded_anew(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1)
    accept(coupon, 2)
    issue()
    forget_user(coupon, 1)
    too_many = accept(coupon, 3)
    issue()
    assert answer(too_many.request_id) == ("FAILED", "SOLD_OUT")
    assert ask(coupon, 3) == "sold_out"
    assert gate_of(coupon) == ({1, 2}, set())


def test_what_an_earlier_gate_let_in_says_nothing_against_this_one(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1)
    too_many = accept(coupon, 2)
    flush()
    issue(messages_on_their_way()[:1])
    UserCoupon.objects.create(coupon=coupon, user_id=3, issued_at="2026-01-01T00:00:00Z")
    Coupon.objects.update(issued=2)
    before = loads()
    assert ask(coupon, 4) == "sold_out"
    issue()
    assert answer(too_many.request_id) == ("FAILED", "SOLD_OUT")
    assert [ask(coupon, user_id) for user_id in (1, 3, 4)] == ["already_issued", "already_issued", "sold_out"]
    assert gate_of(coupon) == ({1, 3}, set())
    assert loads() - before == 1


# Redis in trouble


def test_while_redis_is_away_requests_are_told_to_come_back(
    make_gate: MakeGate, client: Client, token: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    path = f"/api/v1/coupons/{coupon.id}/issue-async"
    with monkeypatch.context() as patch:
        away = Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
        for module in (redis_keys, load, releasing):
            patch.setattr(module, "redis", lambda: away)
        refused = client.post(path, content_type="application/json", headers=token(1))
    assert (refused.status_code, refused.json()["code"], refused["Retry-After"]) == (503, "unavailable", "1")
    assert not OutboxMessage.objects.exists()
    assert client.post(path, content_type="application/json", headers=token(1)).status_code == 202


def test_what_redis_was_not_told_keeps_nobody_from_their_answer(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    accepted = accept(coupon, 1)
    with monkeypatch.context() as patch:
        away = Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
        patch.setattr(releasing, "redis", lambda: away)
        issue()
    assert answer(accepted.request_id) == ("SUCCESS", None)
    assert gate_of(coupon) == ({1}, {1})
    release([FinishedRequest(accepted.request_id, coupon.id, 1, None)])
    assert gate_of(coupon) == ({1}, set())


def test_scripts_that_redis_forgot_are_loaded_again(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    redis = get_redis_connection("default")
    for user_id in (1, 2):
        redis.script_flush()
        assert ask(coupon, user_id) == "accepted"
        redis.script_flush()
        issue()
    assert gate_of(coupon) == ({1, 2}, set())


@pytest.mark.usefixtures("every_request_alone")
def test_a_redis_that_is_flushed_again_and_again_costs_nobody_a_piece(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=50)
    over = threading.Event()

    def until_over(work: Callable[[], None], seconds: float) -> None:
        try:
            while not over.wait(seconds):
                work()
        finally:
            connection.close()

    def insist(user_id: int) -> str:
        while (told := ask(coupon, user_id)) == "unavailable":
            time.sleep(0.05)
        return told

    redis = get_redis_connection("default")
    with ThreadPoolExecutor(3) as pool:
        others = [
            pool.submit(until_over, redis.flushdb, 0.05),
            pool.submit(until_over, redis.script_flush, 0.08),
            pool.submit(until_over, issue, 0.01),
        ]
        try:
            told = at_once([partial(insist, user_id) for user_id in range(1, 301)])
        finally:
            over.set()
        for other in others:
            other.result(60)
    issue()
    assert set(told) == {"accepted", "sold_out"}
    assert stock(coupon) == (0, 50)
    assert IssueRequest.objects.count() == told.count("accepted") >= 50
    assert ask(coupon, 301) == "sold_out"
    assert gate_of(coupon) == (holders(), set())
    assert_invariants()
