"""A gate that lost its data is loaded again from PostgreSQL, once and completely."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django_redis import get_redis_connection

from coupons.admission.gate import admission, load
from coupons.admission.gate.store import GateStore
from coupons.models import Coupon, UserCoupon
from devstack.processes import wait_until

from .conftest import (
    MakeGate,
    accept,
    answer,
    ask,
    crowd,
    gate_of,
    issue,
    messages_on_their_way,
)
from .gates import flush, forget_user, holders, loads, use_and_refund

pytestmark = pytest.mark.django_db(transaction=True)


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
    redis, name = get_redis_connection("default"), getattr(GateStore(coupon.id).keys, part)
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
    get_redis_connection("default").hset(GateStore(coupon.id).keys.holders, "sequence", sequence)
    assert accept(coupon, 2).sequence == 2


def test_a_piece_that_comes_back_while_the_gate_is_loaded_is_not_missed(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    flush()
    stage = GateStore.stage

    def stage_and_refund(*args: Any) -> None:
        stage(*args)
        use_and_refund(UserCoupon.objects.get())

    with monkeypatch.context() as patch:
        patch.setattr(GateStore, "stage", stage_and_refund)
        assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "accepted"]


def test_a_gate_that_nobody_enters_any_more_makes_room(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=3)
    accept(coupon, 1)
    redis = get_redis_connection("default")
    for name in GateStore(coupon.id).keys:
        redis.expire(name, 60)
    assert ask(coupon, 1) == "already_issued"
    assert {redis.ttl(name) <= 60 for name in GateStore(coupon.id).keys} == {True}
    accept(coupon, 2)
    [lifetime] = {redis.pttl(name) // 60_000 for name in GateStore(coupon.id).keys}
    assert 23 * 60 < lifetime <= 24 * 60
    redis.delete(*GateStore(coupon.id).keys)  # as they are all at once by then
    assert [ask(coupon, 2), ask(coupon, 3), ask(coupon, 4)] == ["already_issued", "accepted", "sold_out"]


def test_without_a_gate_what_is_revoked_is_forgotten_soon(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())
    redis = get_redis_connection("default")
    assert [redis.ttl(name) > 60 or redis.ttl(name) == -1 for name in GateStore(coupon.id).keys] == [False] * 3


@pytest.mark.usefixtures("every_request_alone")
def test_of_many_who_find_no_gate_one_loads_it(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=50)
    before = loads()
    assert crowd(coupon, range(1, 21)).keys() <= {"accepted", "unavailable"}
    assert loads() - before == 1


def test_while_somebody_else_loads_requests_wait_briefly_and_are_told_to_come_back(
    make_gate: MakeGate, client: Client, token: Callable[..., dict[str, str]]
) -> None:
    coupon = make_gate()
    redis = get_redis_connection("default")
    redis.set(GateStore(coupon.id).lock_key, "somebody", px=60_000)
    path = f"/api/v1/coupons/{coupon.id}/issue-async"
    started_at = time.monotonic()
    refused = client.post(path, content_type="application/json", headers=token(1))
    assert time.monotonic() - started_at < 5
    assert (refused.status_code, refused.json()["code"], refused["Retry-After"]) == (503, "unavailable", "1")

    redis.delete(GateStore(coupon.id).lock_key)  # as it does by itself when its owner was killed
    assert ask(coupon, 1) == "accepted"


def test_while_its_own_process_loads_a_large_gate_requests_are_told_to_come_back_too(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=4)
    for user_id in (1, 2, 3):
        accept(coupon, user_id)
    flush()
    before, lock = loads(), threading.Lock()
    stage = GateStore.stage

    def stage_slowly(*args: Any) -> None:
        with lock:
            stage(*args)

    monkeypatch.setattr(load, "_CHUNK", 2)
    monkeypatch.setattr(GateStore, "stage", stage_slowly)
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
        patch.setattr(GateStore, "stage", fail)
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
    stage = GateStore.stage

    def stage_and_lose_the_lock(*args: Any) -> None:
        stage(*args)
        get_redis_connection("default").delete(GateStore(coupon.id).lock_key)

    with monkeypatch.context() as patch:
        patch.setattr(GateStore, "stage", stage_and_lose_the_lock)
        assert ask(coupon, 2) == "unavailable"
    assert gate_of(coupon) == (set(), set())
    assert ask(coupon, 2) == "accepted"
    assert gate_of(coupon) == ({1, 2}, {1, 2})


def test_what_ends_while_the_gate_is_loaded_is_not_missed(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=3)
    accept(coupon, 1)
    lost = accept(coupon, 2)
    flush()
    activate = GateStore.activate
    batch = messages_on_their_way()

    def issue_and_activate(*args: Any) -> Any:
        UserCoupon.objects.create(coupon=coupon, user_id=2, issued_at="2026-01-01T00:00:00Z")
        Coupon.objects.update(issued=1)
        issue(batch)
        return activate(*args)

    monkeypatch.setattr(GateStore, "activate", issue_and_activate)
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
