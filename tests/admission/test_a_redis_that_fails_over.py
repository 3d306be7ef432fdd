"""Redis fails over behind an address that keeps connections open: every use of it goes on with the new primary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.core.cache import caches
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from redis import Redis
from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag
from common.redis_client import redis_connection
from coupons.admission.gate.store import GateStore
from coupons.issuance import status_cache
from coupons.issuance.status_cache import RequestStatus
from coupons.models import Coupon
from coupons.reconciliation.reconciler import Reconciler
from coupons.redis_queue import queue
from devstack import Part, wait_until
from devstack.ports import free_port
from kafka_bridge.consuming.batch import BatchHandler
from orders.effects import ranking
from orders.models import Order
from orders.ranking import store as ranking_view
from orders.ranking.days import last_days
from tests.support.orders import completed, make_paid_order, make_product
from tests.support.redis_pair import Pair, replicate, replicated, two_servers

from .conftest import accept, ask

pytestmark = pytest.mark.django_db(transaction=True)

RECOVERED_SECONDS = 10.0


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Part]]:
    with two_servers(tmp_path_factory.mktemp("redis-pair")) as parts:
        yield parts


@pytest.fixture(autouse=True)
def pair(parts: list[Part], settings: Settings) -> Iterator[Pair]:
    with replicated(parts) as pair:
        default = settings.CACHES["default"]
        settings.CACHES = {
            **settings.CACHES,
            "default": {**default, "LOCATION": f"redis://127.0.0.1:{pair.address.port}/0"},
        }
        yield pair
        redis_connection().connection_pool.disconnect()


def status_of(request_id: UUID) -> RequestStatus:
    return RequestStatus(request_id, "SUMMER", 7, "SUCCESS", None, 1, None, None)


def use_gate(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate")
    assert ask(coupon, 1) == "accepted"


def use_statuses(make_coupon: Callable[..., Coupon] | None = None) -> None:
    request_id = uuid4()
    status_cache.write([status_of(request_id)])
    assert status_cache.load([request_id]) == {request_id: status_of(request_id)}


def use_worker_list(make_coupon: Callable[..., Coupon]) -> None:
    worker, request_id = queue.RedisQueue(), uuid4()
    queue.append([request_id])
    taken, _ = worker.claim(10)
    assert taken == [str(request_id).encode()]
    worker.ack(taken)
    worker.requeue()


def use_ranking(make_coupon: Callable[..., Coupon]) -> None:
    orders = Order.objects.count() + 1
    BatchHandler(ranking.group()).handle([completed(make_paid_order({make_product("Tea"): 1}))], StopFlag())
    assert len(ranking_view.best(last_days(1), 10) or []) == orders


def use_login_counter(make_coupon: Callable[..., Coupon]) -> None:
    name = str(uuid4())
    caches["default"].add(name, 0, timeout=60)
    assert caches["default"].incr(name) == 1


def use_reconciler(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate")
    accept(coupon, 1)
    GateStore(coupon.id).add([(2, None, None)])
    reconciled = Reconciler(60.0, once=True, lag=lambda: 0).run(StopFlag(), repair=True)
    assert reconciled.outage is None
    assert (reconciled.found.counts, reconciled.remaining.counts) == ({"gate-extra": 1}, {})


@pytest.mark.parametrize(
    "use", [use_gate, use_statuses, use_worker_list, use_ranking, use_login_counter, use_reconciler]
)
def test_every_use_of_redis_goes_on_with_the_new_primary(
    use: Callable[[Callable[..., Coupon]], None], pair: Pair, make_coupon: Callable[..., Coupon]
) -> None:
    use(make_coupon)
    pair.fail_over()
    use(make_coupon)


def test_what_only_reads_leaves_a_demoted_server_that_hears_nothing_any_more(pair: Pair) -> None:
    request_id = uuid4()
    assert status_cache.load([request_id]) == {}
    pair.fail_over()
    replicate(pair.primary, free_port())
    # By another process, at the new primary.
    with closing(Redis(port=pair.replica)) as server:
        server.set(f"status:{request_id}", status_cache.encode(status_of(request_id)))
    wait_until(lambda: status_cache.load([request_id]), RECOVERED_SECONDS, "reads stay where they were")


def test_a_server_that_answers_nothing_for_want_of_its_primary_is_left(pair: Pair) -> None:
    request_id = uuid4()
    use_statuses()
    pair.fail_over()
    with closing(Redis(port=pair.primary)) as server:
        server.config_set("replica-serve-stale-data", "no")
        replicate(pair.primary, free_port())
        try:
            status_cache.write([status_of(request_id)])
            assert status_cache.load([request_id]) == {request_id: status_of(request_id)}
        finally:
            server.config_set("replica-serve-stale-data", "yes")


def test_a_primary_that_lost_its_replicas_is_left(pair: Pair) -> None:
    use_statuses()
    replicate(pair.replica, None)
    pair.address.point_at(pair.replica)
    with closing(Redis(port=pair.primary)) as server:
        server.config_set("min-replicas-to-write", 1)
        try:
            use_statuses()
        finally:
            server.config_set("min-replicas-to-write", 0)


def test_until_the_address_follows_the_gate_refuses_and_says_so_in_a_few_lines(
    pair: Pair, make_coupon: Callable[..., Coupon], caplog: pytest.LogCaptureFixture, client: Client
) -> None:
    coupon = make_coupon(admission="gate")
    accept(coupon, 1)
    pair.promote()
    started_at = timezone.now()
    with caplog.at_level(logging.WARNING, "coupons"):
        assert {ask(coupon, user_id) for user_id in range(2, 102)} == {"unavailable"}
    seconds = (timezone.now() - started_at) / timedelta(seconds=1)
    lines = [record.getMessage() for record in caplog.records if "503" in record.getMessage()]
    assert 1 <= len(lines) <= 2 + seconds
    assert coupon.coupon_type in lines[0]
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["redis"]) == (200, "read_only")
    pair.address.point_at(pair.replica)
    assert ask(coupon, 2) == "accepted"
    assert client.get("/readyz").json()["redis"] == "ok"


@pytest.mark.parametrize(
    ("told", "is_left"),
    [
        ("READONLY You can't write against a read only replica.", True),
        ("ERR Error running script: @user_script: 1: -READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("NOAUTH Authentication required.", True),
        ("MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist to disk.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("BUSY Redis is busy running a script.", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_a_refusal_that_another_server_would_not_give_closes_the_connection(told: str, is_left: bool) -> None:
    redis = redis_connection()
    before = redis.client_id()
    with pytest.raises(RedisError):
        redis.eval("return redis.error_reply(ARGV[1])", 0, told)
    assert (redis.client_id() != before) == is_left
    with pytest.raises(RedisError), redis.pipeline(transaction=False) as pipeline:
        pipeline.ping().eval("return redis.error_reply(ARGV[1])", 0, told).ping().execute()
    assert redis.ping() is True
