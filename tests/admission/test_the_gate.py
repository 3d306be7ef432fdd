"""What the gate alone can do: spare PostgreSQL, and answer while Redis is in trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import DjangoAssertNumQueries
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from common import redis_scripts
from coupons.admission import ADMISSIONS, FinishedRequest
from coupons.admission.gate import store
from coupons.admission.gate.admission import Gate
from coupons.admission.gate.releasing import release
from coupons.errors import SoldOut
from coupons.issuance import accept_group
from coupons.models import IssueRequest
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage
from tests.support.threads import in_another_session

from .conftest import (
    MakeGate,
    accept,
    answer,
    ask,
    assert_invariants,
    at_once,
    gate_of,
    issue,
    stock,
)
from .gates import candidate, holders, keyed

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_refusal_costs_postgresql_nothing(
    make_gate: MakeGate, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    coupon = make_gate(total_quantity=1)
    accept(coupon, 1)
    with django_assert_num_queries(0):
        assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "sold_out"]


def commands_sent(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that takes the commands that are sent to Redis from now on.

    Without ROLE, which a connection asks every few seconds.
    """
    sent: list[object] = []
    send: Any = AbstractConnection.send_packed_command

    def note_and_send(self: AbstractConnection, command: list[bytes], *args: Any, **kwargs: Any) -> None:
        if command[0].split(b"\r\n")[2] != b"ROLE":
            sent.append(command)
        send(self, command, *args, **kwargs)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", note_and_send)
    return sent


def test_a_group_of_requests_is_one_call(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=100)
    accept(coupon, 1)
    requests = [candidate(coupon, user_id) for user_id in range(1, 201)]
    sent = commands_sent(monkeypatch)
    ADMISSIONS["gate"].admit(requests)
    assert len(sent) == 1
    assert [one.sequence for one in requests if one.newly_reserved] == list(range(2, 101))


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
    sent = commands_sent(monkeypatch)
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
    confirm = Gate.confirm
    overtaking: list[Any] = []

    def be_overtaken(*args: Any) -> Any:
        monkeypatch.setattr(Gate, "confirm", confirm)

        def overtake() -> Any:
            accepted = accept(coupon, 1, "k")
            if decided:
                issue()
            return accepted

        overtaking.append(in_another_session(overtake).result(30))
        return confirm(*args)

    monkeypatch.setattr(Gate, "confirm", be_overtaken)
    assert [accept(coupon, 1, "k")] == overtaking
    assert gate_of(coupon) == ({1}, set() if decided else {1})
    assert ask(coupon, 2) == "sold_out"
    issue()
    assert gate_of(coupon) == ({1}, set())
    assert_invariants()


def test_every_number_of_candidates_is_served(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1500)
    requests = [candidate(coupon, user_id) for user_id in range(1, 2001)]
    ADMISSIONS["gate"].admit(requests)
    assert sum(one.refusal is None for one in requests) == 1500


def test_ids_of_64_bits_are_kept_exactly(make_gate: MakeGate) -> None:
    coupon = make_gate()
    users = [2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53]
    assert [ask(coupon, user_id) for user_id in users] == ["accepted"] * 4
    assert gate_of(coupon) == (set(users), set(users))


def test_while_redis_is_away_requests_are_told_to_come_back(
    make_gate: MakeGate, client: Client, token: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    path = f"/api/v1/coupons/{coupon.id}/issue-async"
    with monkeypatch.context() as patch:
        away = Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
        for module in (redis_scripts, store):
            patch.setattr(module, "redis_connection", lambda: away)
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
        for module in (redis_scripts, store):
            patch.setattr(module, "redis_connection", lambda: away)
        issue()
    assert answer(accepted.request_id) == ("SUCCESS", None)
    assert gate_of(coupon) == ({1}, {1})
    release([FinishedRequest(accepted.request_id, coupon.id, 1, None)])
    assert gate_of(coupon) == ({1}, set())


@pytest.mark.usefixtures("redis_alone")
def test_scripts_that_redis_forgot_are_loaded_again(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    redis = get_redis_connection("default")
    for user_id in (1, 2):
        redis.script_flush()
        assert ask(coupon, user_id) == "accepted"
        redis.script_flush()
        issue()
    assert gate_of(coupon) == ({1, 2}, set())


@pytest.mark.usefixtures("redis_alone")
def test_scripts_that_redis_forgets_before_every_call_are_sent_along(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    evalsha = Redis.evalsha

    def lose_and_call(client: Redis, *args: Any) -> Any:
        client.script_flush()
        return evalsha(client, *args)

    monkeypatch.setattr(Redis, "evalsha", lose_and_call)
    coupon = make_gate()
    assert ask(coupon, 1) == "accepted"
    issue()
    assert gate_of(coupon) == ({1}, set())


@pytest.mark.usefixtures("redis_alone", "every_request_alone")
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
