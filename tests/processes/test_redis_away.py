"""Redis stops in the middle of a burst: coupons are issued on, and PostgreSQL tells the statuses."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pytest_django import Settings

from coupons.models import Coupon, IssueRequest
from couponsite.demo.processes import procfile_process, wait_until_ready
from devstack import Part, Stack
from devstack.ports import free_port
from tests.processes.conftest import Web, assert_in_the_middle_of, when_issued
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service, environment

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
def web(transactional_db: None, redis: Part, tmp_path: Path) -> Iterator[Web]:
    """A web process of the test's own, on that Redis."""
    port = free_port()
    process = procfile_process("web", environment(PORT=str(port), HOST="127.0.0.1"), tmp_path / "web.log")
    with process:
        wait_until_ready(process, port)
        yield Web(process, port)


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
    service.start("issuer")
    crowd = burst()
    when_issued(20)
    redis.kill()
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    for request in IssueRequest.objects.order_by("?")[:20]:
        assert request.user_id is not None
        assert told_status(web.port, request, token(request.user_id)) == (request.status, request.reason)
