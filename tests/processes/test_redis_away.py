"""Redis stops in the middle of a burst: coupons are issued on, PostgreSQL tells the statuses, and gates come back."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pytest_django import Settings

from coupons import invariants
from coupons.models import Coupon, IssueRequest, Reservation, RolloutChange
from devstack import Part, Stack, wait_until
from tests.processes.conftest import STOCK, Web, assert_in_the_middle_of, when_accepted, when_issued
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold, when_decided
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def redis(tmp_path: Path, settings: Settings) -> Iterator[Part]:
    """A Redis that only this test uses."""
    environ = {"DATABASE_URL": "postgres://given", "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS}
    stack = Stack("redis-away", root=tmp_path, environ=environ, report=print)
    with stack.used() as addresses:
        settings.REDIS_URL = addresses.redis_url
        yield stack.part("redis")


@pytest.fixture
def web(redis: Part, own_web: Web) -> Web:
    """The web process that the burst asks, on that Redis."""
    return own_web


def told_status(port: int, request: IssueRequest, headers: dict[str, str]) -> tuple[str, str | None]:
    address = f"http://127.0.0.1:{port}/api/v1/issue-requests/{request.request_id}"
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        body = json.load(answer)
    return body["status"], body["reason"]


def test_issuing_and_reading_go_on_without_redis(
    redis: Part,
    web: Web,
    service: Service,
    burst: Callable[..., Burst],
    coupons: Sequence[Coupon],
    token: Callable[..., dict[str, str]],
) -> None:
    service.start("relay")
    service.start("issuer", "--batch-size", "50")
    crowd = burst()
    when_issued(20)
    redis.kill()
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    for request in IssueRequest.objects.order_by("?")[:20]:
        assert request.user_id is not None
        assert told_status(web.port, request, token(request.user_id)) == (request.status, request.reason)


@pytest.mark.parametrize("worker_percent", [0, 50])
def test_a_gate_whose_redis_dies_refuses_for_the_moment_and_loses_neither_piece_nor_promise(
    redis: Part,
    web: Web,
    service: Service,
    burst: Callable[..., Burst],
    coupons: Sequence[Coupon],
    worker_percent: int,
) -> None:
    Coupon.objects.update(admission="gate")
    RolloutChange.objects.create(flag="issue-worker", percent=worker_percent)
    for role in ("relay", "issuer", "worker"):
        service.start(role)
    service.start("reconciler", "--patience", "5")
    crowd = burst(3000, 1500)
    # Not by what is issued: an issuer that is slow to start finds the whole burst answered, most of it refused.
    when_accepted(crowd, 50)
    redis.kill()
    wait_until(lambda: crowd.retries["503"] > 20, 30, "no request is answered 503")
    redis.start()
    answers = crowd.finish()
    assert {answer.status for answer in answers} <= {202, 409}
    when_decided(answers)
    # The reconciler releases what was reserved for answers that never came: the next users get it.
    wait_until(lambda: service.run("reconcile", "--patience", "5") == 0, 60, "the reconciler finds something", 1)
    when_decided(burst(400, 400).finish())
    assert [Coupon.objects.get(id=coupon.id).issued for coupon in coupons] == [STOCK, STOCK]
    assert not Reservation.objects.exists()
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
