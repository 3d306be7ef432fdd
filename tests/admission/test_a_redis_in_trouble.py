"""A Redis that is there and cannot do its work: the gate says so, lets nobody in, and goes on when it is well again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.core.cache import caches
from django_redis import get_redis_connection
from pytest_django import Settings

from coupons.models import Coupon, IssueRequest
from devstack import Part, Stack
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage

from .conftest import accept, ask, assert_invariants, gate_of, issue

pytestmark = pytest.mark.django_db(transaction=True)

Trouble = Callable[[Part], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A Redis that only these tests use."""
    root: Path = tmp_path_factory.mktemp("redis")
    environ = {"DATABASE_URL": "postgres://given", "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS}
    stack = Stack("redis-in-trouble", root=root, environ=environ, report=print)
    with stack.used():
        yield stack.part("redis")


@pytest.fixture(autouse=True)
def _on_that_redis(server: Part, settings: Settings) -> Iterator[None]:
    default = settings.CACHES["default"]
    settings.CACHES = {**settings.CACHES, "default": {**default, "LOCATION": f"redis://127.0.0.1:{server.port}/0"}}
    yield
    caches["default"].close()


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
