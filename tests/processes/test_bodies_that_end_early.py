"""Connections that break before the body has come: nothing is executed of it, whatever the path."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User

from coupons.models import Coupon
from couponsite.auth.tokens import ISSUE_FOR_OTHERS, issue_access_token
from demo.processes import WebProcess, wait_until_ready
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage
from orders.models import Order
from tests.support.factories import CouponFactory
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

MINJI = 7
PASSWORD = "correct horse battery staple"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
# {order} and {coupon} are ids. Each would be done if an absent body counted as {}.
COMMANDS = [
    "/api/v1/orders/{order}/pay",
    "/api/v1/orders/{order}/cancel",
    "/api/v1/coupons/{coupon}/issue-async",
    "/coupons/{coupon}/issue-async",
    "/api/v1/users/8/coupons/{coupon}/issue",
]


@pytest.fixture(scope="module")
def port(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web process with one thread: it works on one request after the other, in the order they came."""
    number = free_port()
    env = environment(PORT=str(number), HOST="127.0.0.1", WEB_CONCURRENCY="1", WEB_THREADS="1")
    with WebProcess(env, tmp_path_factory.mktemp("web") / "web.log") as web:
        wait_until_ready(web, number)
        yield number


@pytest.fixture
def coupon(transactional_db: None) -> Coupon:
    return CouponFactory.create()


@pytest.fixture
def order(transactional_db: None) -> Order:
    """Minji's order, which waits for its payment."""
    return Order.objects.create(
        user_id=MINJI, total_amount=1000, pay_amount=1000, expires_at=datetime(2120, 1, 1, tzinfo=UTC)
    )


def token(scope: str = ISSUE_FOR_OTHERS) -> str:
    return f"Authorization: Bearer {issue_access_token(MINJI, scope)}\r\n"


def send(port: int, line: str, headers: str, arrived: bytes) -> socket.socket:
    """A connection on which a request with this much of its body was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + arrived)
    return connection


def answer_to(port: int, line: str, headers: str, arrived: bytes, *, cut: bool = True) -> str:
    """The answer to a client that ends its side of the connection after so much of the body, unless not ``cut``."""
    with send(port, line, f"{headers}Connection: close\r\n", arrived) as connection:
        if cut:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read().decode()


def call(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=dict([token().strip().split(": ")]))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def assert_nothing_happened(order: Order) -> None:
    order.refresh_from_db()
    assert order.status == Order.Status.PENDING
    assert not OutboxMessage.objects.exists()


@pytest.mark.parametrize(("length", "arrived"), [(2, b""), (10, b"{}"), (16_384, b"{")])
def test_a_command_whose_body_ended_early_is_not_executed(
    port: int, order: Order, coupon: Coupon, length: int, arrived: bytes
) -> None:
    for path in COMMANDS:
        line = f"POST {path.format(order=order.pk, coupon=coupon.pk)}"
        answer = answer_to(port, line, f"{token()}Content-Type: {JSON}\r\nContent-Length: {length}\r\n", arrived)
        assert answer.startswith("HTTP/1.1 400 ")
        assert '"code":"invalid"' in answer
        assert f"The body ended early: {len(arrived)} of {length} bytes arrived." in answer
    assert_nothing_happened(order)


def test_a_client_that_vanishes_before_its_body_commands_nothing(port: int, order: Order, coupon: Coupon) -> None:
    # Some of them vanish before the server looks.
    for path in COMMANDS * 3:
        line = f"POST {path.format(order=order.pk, coupon=coupon.pk)}"
        send(port, line, f"{token()}Content-Type: {JSON}\r\nContent-Length: 2\r\n", b"").close()
    # The one thread takes this call only after the others.
    status, body = call(port, "GET", f"/api/v1/orders/{order.pk}")
    assert (status, json.loads(body)["status"]) == (200, "PENDING")
    assert_nothing_happened(order)


@pytest.mark.parametrize("path", COMMANDS)
def test_the_same_command_with_its_whole_body_is_executed(port: int, order: Order, coupon: Coupon, path: str) -> None:
    line = f"POST {path.format(order=order.pk, coupon=coupon.pk)}"
    answer = answer_to(port, line, f"{token()}Content-Type: {JSON}\r\nContent-Length: 2\r\n", b"{}", cut=False)
    assert answer.startswith(("HTTP/1.1 200 ", "HTTP/1.1 202 "))


def test_a_length_that_is_none_is_refused(port: int, order: Order) -> None:
    framings = [
        "Content-Length: -2\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: two\r\n",
        "Content-Length: \r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        f"Content-Length: {'9' * 30}\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
    ]
    for framing in framings:
        answer = answer_to(port, f"POST /api/v1/orders/{order.pk}/pay", f"{token()}{framing}", b"{}")
        assert answer.startswith("HTTP/1.1 400 "), framing
    assert_nothing_happened(order)


def test_a_body_that_ended_early_is_400_on_every_path(port: int, transactional_db: None) -> None:
    lines = {
        "POST /api/v1/coupons/issue-async": JSON,
        "POST /api/v1/orders": JSON,
        "POST /api/v1/auth/token": JSON,
        "POST /api/v1/auth/token/refresh": JSON,
        "GET /api/v1/coupons": JSON,
        "POST /api/v1/nowhere": JSON,
        "GET /api/schema": JSON,
        "GET /": FORM,
        "POST /admin/login/": FORM,
        "GET /static/couponsite/icon.svg": FORM,
        "POST /nowhere": FORM,
    }
    for line, content_type in lines.items():
        headers = f"{token()}Content-Type: {content_type}\r\nContent-Length: 5\r\n"
        answer = answer_to(port, line, headers, b"{}")
        assert answer.startswith("HTTP/1.1 400 "), line
        assert "The body ended early: 2 of 5 bytes arrived." in answer


def test_a_form_that_ended_early_logs_no_user_in(port: int, transactional_db: None) -> None:
    User.objects.create_superuser("olga", password=PASSWORD)
    cookie = "a" * 32
    form = urlencode({"csrfmiddlewaretoken": cookie, "username": "olga", "password": PASSWORD}).encode()
    headers = f"Cookie: csrftoken={cookie}\r\nContent-Type: {FORM}\r\nContent-Length: "
    cut = answer_to(port, "POST /admin/login/", f"{headers}{len(form) + 1}\r\n", form)
    assert cut.startswith("HTTP/1.1 400 ")
    assert "sessionid=" not in cut
    whole = answer_to(port, "POST /admin/login/", f"{headers}{len(form)}\r\n", form, cut=False)
    assert whole.startswith("HTTP/1.1 302 ")
    assert "sessionid=" in whole
