"""Slow, silent and broken clients cost a coroutine and a deadline, and nothing is executed for half a request."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack, suppress

import pytest
from django.contrib.auth.models import User
from django.test import Client

from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
from couponsite.intake.bodies import BODY_SECONDS
from devstack import wait_until
from kafka_bridge.models import OutboxMessage
from tests.support.calls import ask, assert_prompt, call, probed
from tests.support.factories import CouponFactory

from .conftest import Pair, connected, read_answer

SILENT = 1500
USER = 41


@pytest.fixture
def coupon(pair: Pair) -> Coupon:
    made: Coupon = CouponFactory.create(total_quantity=1000)
    return made


def head(coupon: Coupon, framing: str, path: str = "") -> bytes:
    return (
        f"POST {path or f'/api/v1/coupons/{coupon.id}/issue-async'} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n"
        f"Authorization: Bearer {issue_access_token(USER)}\r\nContent-Type: application/json\r\n\r\n"
    ).encode()


def accepted_requests() -> int:
    return OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count()


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 2", b"{"),
        ("Content-Length: 2", b""),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\n"),
        ("Transfer-Encoding: chunked", b"2\r\n{}"),
        ("Transfer-Encoding: chunked", b"2\r\n{"),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0"),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\nzz\r\n\r\n"),
        ("Transfer-Encoding: chunked", b""),
    ],
)
@pytest.mark.parametrize("path", ["", "/api/v1/orders"])
def test_a_body_that_ends_early_executes_nothing(
    pair: Pair, coupon: Coupon, framing: str, body: bytes, path: str
) -> None:
    with connected(pair.port) as client:
        client.sendall(head(coupon, framing, path) + body)
        client.shutdown(socket.SHUT_WR)
        # The server may close a broken connection without an answer.
        with suppress(ConnectionError):
            assert read_answer(client, "POST").status == 400
    # A whole request after it shows that the first one is over.
    assert_prompt([ask(pair.port, coupon.coupon_type, USER + 1)], status=202)
    assert accepted_requests() == 1


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        ("Content-Length: " + "9" * 18, 413),
        # The server itself refuses what does not fit into 64 bits.
        ("Content-Length: " + "9" * 5000, 400),
        ("Content-Length: " + "0" * 5000 + "2", 202),
        ("Content-Length: two", 400),
        ("Content-Length: -2", 400),
        ("Content-Length: 2\r\nContent-Length: 3", 400),
        ("Transfer-Encoding: gzip, chunked", 415),
        ("Transfer-Encoding: gzip", 400),
    ],
)
@pytest.mark.parametrize("path", ["", "/api/v1/orders"])
def test_an_odd_framing_is_refused(pair: Pair, coupon: Coupon, framing: str, status: int, path: str) -> None:
    body = b"2\r\n{}\r\n0\r\n\r\n" if "Transfer" in framing else b"{}"
    with connected(pair.port) as client:
        client.sendall(head(coupon, framing, path) + body)
        answer = read_answer(client, "POST")
    # An empty order is refused for its content.
    assert answer.status == (400 if path and status == 202 else status)


def test_a_chunked_body_with_a_trailer_is_whole(pair: Pair, coupon: Coupon) -> None:
    with connected(pair.port) as client:
        client.sendall(head(coupon, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n")
        assert read_answer(client, "POST").status == 202


def test_a_late_body_is_answered_408_and_its_connection_closed(pair: Pair, coupon: Coupon) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(pair.port)) for _ in range(4)]
        started = time.monotonic()
        for client, path in zip(clients, ("", "", "/api/v1/orders", "/admin/login/"), strict=True):
            client.sendall(head(coupon, "Content-Length: 2", path) + b"{")
        for client in clients:
            answer = read_answer(client, "POST")
            assert answer.status == 408
            assert client.recv(1) == b""
    assert time.monotonic() - started >= BODY_SECONDS
    assert accepted_requests() == 0


def test_silent_connections_keep_nothing_from_others(pair: Pair, coupon: Coupon, many_files: None) -> None:
    beginnings = (
        b"",
        b"POST / HTTP/1.1\r\n",
        head(coupon, "Content-Length: 2"),
        head(coupon, "Content-Length: 2") + b"{",
    )
    with ExitStack() as stack:
        for number in range(SILENT):
            client = stack.enter_context(connected(pair.port))
            client.sendall(beginnings[number % len(beginnings)])
        # Until the last of them were taken in, they are as many requests at once as any other crowd.
        wait_until(lambda: ask(pair.port, coupon.coupon_type, USER).status == 202, 5, "they keep others out")
        with probed(pair.port) as probes:
            for user in range(1, 11):
                assert_prompt([ask(pair.port, coupon.coupon_type, user)], status=202)
                assert_prompt([call(pair.port, "GET", "/api/v1/coupons", user=user)])
                assert_prompt([call(pair.port, "GET", "/api/schema")])
    assert_prompt(probes)


def test_announced_bodies_that_never_come_keep_no_memory_from_others(pair: Pair, coupon: Coupon) -> None:
    with ExitStack() as stack:
        for path in ("/x", "/api/v1/orders"):
            for _ in range(100):
                stack.enter_context(connected(pair.port)).sendall(
                    head(coupon, f"Content-Length: {16_000 if path.startswith('/api') else 2_000_000}", path)
                )
        assert_prompt([ask(pair.port, coupon.coupon_type, user) for user in range(1, 4)], status=202)


def test_the_server_itself_is_no_address(pair: Pair) -> None:
    message = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert pair.to_lane(message, "OPTIONS").status == pair.to_site(message, "OPTIONS").status == 404


def test_a_cookie_that_is_no_ascii_keeps_the_session(pair: Pair) -> None:
    User.objects.create_superuser("carol", password="correct horse battery staple")
    browser = Client()
    assert browser.login(username="carol", password="correct horse battery staple")
    session = browser.cookies["sessionid"].value
    lines = ["GET /admin/ HTTP/1.1", "Host: localhost", "Connection: close", f"Cookie: name=\xe9; sessionid={session}"]
    message = "\r\n".join([*lines, "", ""])
    for encoding in ("latin-1", "utf-8"):
        assert pair.to_lane(message.encode(encoding), "GET").status == 200


def test_header_names_with_an_underscore_are_dropped(pair: Pair, coupon: Coupon) -> None:
    message = head(coupon, "Content-Length: 2\r\nIdempotency_Key: k\r\nConnection: close") + b"{}"
    first, second = pair.to_lane(message), pair.to_lane(message)
    assert (first.status, second.status) == (202, 202)
    assert first.body != second.body


def test_a_server_that_stops_ends_slow_bodies_and_answers_the_others(pair: Pair, coupon: Coupon) -> None:
    with connected(pair.port) as slow:
        slow.sendall(head(coupon, "Content-Length: 2") + b"{")
        assert_prompt([ask(pair.port, coupon.coupon_type, USER)], status=202)
        started = time.monotonic()
        pair.process.send_signal(signal.SIGTERM)
        assert pair.process.wait(20) == 0
        assert time.monotonic() - started < BODY_SECONDS
    wait_until(lambda: accepted_requests() == 1, 5, "the accepted request is gone")
