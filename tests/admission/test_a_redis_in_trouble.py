"""A Redis that is there and cannot do its work: the gate says so, lets nobody in, and goes on when it is well again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from pytest_django import Settings
from redis.exceptions import RedisError

from coupons.admission import ADMISSIONS
from coupons.admission.gate.store import GateStore
from coupons.issuance import accept_group, status_cache
from coupons.issuance.status_cache import RequestStatus
from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon, IssueRequest
from devstack import Part, wait_until
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage
from tests.support.own_redis import on_redis, redis_server

from .conftest import accept, ask, assert_invariants, gate_of, issue
from .gates import keyed

pytestmark = pytest.mark.django_db(transaction=True)

Trouble = Callable[[Part], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A Redis that only these tests use."""
    with redis_server("redis-in-trouble", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def _on_that_redis(server: Part, settings: Settings) -> Iterator[None]:
    with on_redis(server, settings):
        yield


@contextmanager
def full(server: Part) -> Iterator[None]:
    redis = get_redis_connection("default")
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def read_only(server: Part) -> Iterator[None]:
    redis = get_redis_connection("default")
    redis.replicaof("127.0.0.1", free_port())
    yield
    redis.replicaof("NO", "ONE")


@contextmanager
def hanging(server: Part) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


TROUBLES: list[Trouble] = [full, read_only, hanging]


@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "not loaded"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_nobody_is_let_in_and_nothing_is_stuck_afterwards(
    trouble: Trouble, is_loaded: bool, server: Part, make_coupon: Callable[..., Coupon]
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=2)
    accept(coupon, 1)
    if not is_loaded:
        get_redis_connection("default").flushdb()
    with trouble(server):
        started_at = time.monotonic()
        assert ask(coupon, 2, "k") == "unavailable"
        # The client gives up after a second.
        assert time.monotonic() - started_at < 10
        assert OutboxMessage.objects.count() == 1
        issue()
    assert IssueRequest.objects.get().status == "SUCCESS"
    # Whether or not the call was answered too late: under the same key it is the same request.
    assert [ask(coupon, 1), ask(coupon, 2, "k"), ask(coupon, 3)] == ["already_issued", "accepted", "sold_out"]
    issue()
    assert gate_of(coupon)[0] == {1, 2}
    assert_invariants()


def test_who_is_refused_is_told_so_by_a_full_redis_too(server: Part, make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=1)
    accept(coupon, 1)
    with full(server):
        assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "sold_out"]
    assert gate_of(coupon) == ({1}, {1})


@contextmanager
def stopped(server: Part) -> Iterator[None]:
    server.stop()
    yield
    server.start()


def test_a_repeat_under_its_key_is_answered_while_redis_is_stopped(
    server: Part, make_coupon: Callable[..., Coupon]
) -> None:
    coupon, other = make_coupon(admission="gate", total_quantity=5), make_coupon(admission="gate")
    decided, waiting = accept(coupon, 1, "k"), accept(coupon, 2, "k")
    issue()
    with stopped(server):
        assert [accept(coupon, 1, "k"), accept(coupon, 2, "k")] == [decided, waiting]
        assert [ask(coupon, 1), ask(coupon, 3, "k"), ask(coupon, 1, "l")] == ["unavailable"] * 3
        assert ask(other, 1, "k") == "idempotency_key_reused"
    assert OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count() == 2


def test_whether_a_key_was_used_is_read_once_per_batch_and_only_after_the_gate(
    server: Part, make_coupon: Callable[..., Coupon]
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=50)
    first = accept(coupon, 1, "k")
    accept(coupon, 2)
    with CaptureQueriesContext(connection) as without_a_key:
        assert ask(coupon, 2) == "already_issued"
    assert len(without_a_key) == 0
    with CaptureQueriesContext(connection) as with_a_key:
        assert accept(coupon, 1, "k") == first
    assert len(with_a_key) == 1
    with stopped(server):
        with CaptureQueriesContext(connection) as queries:
            assert ask(coupon, 3) == "unavailable"
        assert len(queries) == 0
        group = [keyed(coupon, user_id, "k") for user_id in (10, 11, 12, 1)]
        with CaptureQueriesContext(connection) as queries:
            answers = accept_group.accept_group(ADMISSIONS["gate"], group)
        assert len(queries) == 1
        assert [answer.existing and answer.existing.request_id for answer in answers] == [None] * 3 + [first.request_id]


@contextmanager
def memory_left(megabytes: int) -> Iterator[None]:
    redis = get_redis_connection("default")
    redis.flushdb()
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + megabytes * 1_000_000)
    yield
    redis.config_set("maxmemory", 0)
    redis.flushdb()


def write_statuses(number: int) -> int:
    """How many of so many winners' statuses were cached."""
    return status_cache.write(
        RequestStatus(uuid4(), "SUMMER", user_id, "SUCCESS", None, user_id, None, None) for user_id in range(number)
    )


def write_until_refused(number: int) -> None:
    with suppress(RedisError):
        while True:
            write_statuses(number)


def test_statuses_leave_room_for_gates(
    server: Part, make_coupon: Callable[..., Coupon], caplog: pytest.LogCaptureFixture
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=102)
    for user_id in range(1, 101):
        accept(coupon, user_id)
    redis = get_redis_connection("default")
    with memory_left(8):
        for _ in range(100):
            if not write_statuses(1000):
                break
        assert write_statuses(1000) == 0
        memory = redis.info("memory")
        assert 0.4 < memory["used_memory"] / memory["maxmemory"] < 0.75
        assert "STATUS_CACHE_MEMORY_PERCENT" in caplog.text
        # A gate loads beside them, and admits.
        assert not redis.exists(*GateStore(coupon.id).keys)
        assert [ask(coupon, user_id) for user_id in (1, 101, 102, 103)] == [
            "already_issued", "accepted", "accepted", "sold_out",
        ]  # fmt: skip
    wait_until(lambda: write_statuses(10) == 10, 5, "nothing is cached although there is room")


def test_without_the_bound_statuses_would_take_the_memory_of_the_gates(
    server: Part, make_coupon: Callable[..., Coupon], settings: Settings
) -> None:
    settings.STATUS_CACHE_MEMORY_PERCENT = 1000
    coupon = make_coupon(admission="gate", total_quantity=2)
    with memory_left(8):
        # The last call was granted more than it left, so smaller ones follow.
        for number in (1000, 100, 10, 1):
            write_until_refused(number)
        assert ask(coupon, 1) == "unavailable"
