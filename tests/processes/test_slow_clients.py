"""Clients that announce a body and send none keep neither probes nor other clients from their answers."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tests.processes.conftest import Web
from tests.support.calls import ask, assert_prompt, call, probed
from tests.support.factories import CouponFactory

pytestmark = pytest.mark.django_db(transaction=True)

_SOCKETS = 100


@pytest.mark.parametrize("path", ["/api/v1/coupons/issue-async", "/admin/login/", "/livez"])
def test_sockets_that_send_no_body_keep_nothing_from_others(web: Web, path: str) -> None:
    coupon = CouponFactory.create()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(_SOCKETS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            client.sendall(head.encode())
        # The server counts its idle threads without a lock: it may miss that it needs another one, and notices with the
        # next request. So there are two clients, as there always are.
        probes = stack.enter_context(probed(web.port))
        for user in range(1, 11):
            assert_prompt([call(web.port, "GET", "/api/schema")])
            assert_prompt([ask(web.port, coupon.coupon_type, user)], status=202)
    assert_prompt(probes)
