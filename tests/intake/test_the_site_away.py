"""The hot calls do not notice that the site is away; everything else is answered 503 until it is back."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from devstack import wait_until
from tests.support.calls import ask, assert_prompt, call, is_refused
from tests.support.factories import CouponFactory

from .conftest import Pair

USER = 31


def assert_served(port: int) -> None:
    """Every hot call is answered at once."""
    coupon = CouponFactory.create(total_quantity=10, admission="gate")
    accepted = ask(port, coupon.coupon_type, USER)
    assert_prompt([accepted], status=202)
    for path in (
        f"/api/v1/issue-requests/{accepted.body['requestId']}",
        "/api/v1/coupons",
        f"/api/v1/coupons/{coupon.id}",
        "/livez",
        "/readyz",
        "/metrics",
    ):
        assert_prompt([call(port, "GET", path, user=USER)])


@contextmanager
def stopped_site(pair: Pair) -> Iterator[None]:
    """The site hangs: its processes get no CPU."""
    os.killpg(pair.process.site.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(pair.process.site.pid, signal.SIGCONT)


def test_a_site_that_hangs(pair: Pair) -> None:
    with stopped_site(pair):
        assert_served(pair.port)


def test_a_site_that_hangs_with_large_bodies(pair: Pair) -> None:
    # Together more than the process holds.
    body = b"x" * (2 * 1024 * 1024 - 1)
    head = f"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with stopped_site(pair), ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", pair.port), timeout=20)) for _ in range(40)
        ]
        for client in clients:
            with suppress(ConnectionError):
                client.sendall(head + body)
        wait_until(lambda: select.select(clients, [], [], 0)[0], 20, "every body is taken")
        assert_served(pair.port)


def test_a_site_that_is_down(pair: Pair) -> None:
    os.killpg(pair.process.site.pid, signal.SIGKILL)
    pair.process.site.wait(10)
    assert_served(pair.port)
    refused = call(pair.port, "POST", "/api/v1/orders", user=USER, body={})
    assert is_refused(refused)
    assert "was not executed" in refused.body["detail"]
    page = call(pair.port, "GET", "/")
    assert (page.status, page.headers["Retry-After"]) == (503, "1")
    assert "unavailable for a moment" in page.body
    pair.process.site.start()
    wait_until(lambda: call(pair.port, "GET", "/").status == 200, 30, "the site is not back")


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Intake-Client", "X_Intake_Client"])
def test_a_client_cannot_name_its_address(pair: Pair, redis_flushed: None, name: str) -> None:
    """Guesses of passwords count for the address of the connection, whatever addresses the client names."""
    body = b'{"username":"carol","password":"wrong"}'
    statuses = [
        pair.to_lane(
            (
                f"POST /api/v1/auth/token HTTP/1.1\r\nHost: localhost\r\n{name}: 0 192.0.2.{number}\r\n"
                f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
        ).status
        for number in range(11)
    ]
    assert statuses == [401] * 10 + [429]
