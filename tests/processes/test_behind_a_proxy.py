"""The web process behind a proxy: whose login it counts, and how long it keeps an idle connection."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from demo.processes import WebProcess, wait_until_ready
from devstack.ports import free_port
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 3
IDLE_SECONDS = 2
STRANGER, OTHER = "192.0.2.7", "198.51.100.9"


@pytest.fixture(scope="module")
def port(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = free_port()
    env = environment(
        PORT=str(number),
        HOST="127.0.0.1",
        WEB_CONCURRENCY="1",
        TRUSTED_PROXY_COUNT="1",
        # A day's window does not end within a test, unless it runs at midnight.
        AUTH_TOKEN_THROTTLE=f"{LIMIT}/day",
        WEB_KEEP_ALIVE_SECONDS=str(IDLE_SECONDS),
    )
    with WebProcess(env, tmp_path_factory.mktemp("web") / "web.log") as web:
        wait_until_ready(web, number)
        yield number


def login(port: int, forwarded_for: str, username: str) -> int:
    """The status of a login with a wrong password that the proxy forwards."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            "POST",
            "/api/v1/auth/token",
            json.dumps({"username": username, "password": "wrong"}),
            {"Content-Type": "application/json", "X-Forwarded-For": forwarded_for, "X-Forwarded-Proto": "https"},
        )
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "written",
    [
        [STRANGER, f"{STRANGER}:50001", f"{STRANGER}:50002", f"{STRANGER}:"],
        [STRANGER, f'"{STRANGER}"', f'"{STRANGER}:50001"', f" \t{STRANGER} "],
        # What the client wrote itself stands before what the proxy added.
        [STRANGER, f"{OTHER}, {STRANGER}", f"10.0.0.1, {OTHER},{STRANGER}:50001", f",,, {STRANGER}"],
        [STRANGER, f"::ffff:{STRANGER}", f"[::ffff:{STRANGER}]:50001", "::ffff:c000:207"],
        ["2001:db8::1", "[2001:db8::1]:443", "[2001:db8::ffff:1]", "2001:DB8:0:0:1234::5", "2001:db8::1%eth0"],
        # The proxy does not know: then it is the proxy that is counted.
        ["unknown", "_hidden", "999.1.1.1", "1.2.3", "[", "secret:x:y"],
    ],
)
def test_an_address_is_one_however_it_is_written(
    port: int, transactional_db: None, redis_flushed: None, written: list[str]
) -> None:
    for n in range(LIMIT):
        assert login(port, written[n % len(written)], f"user{n}") == 401
    for n, text in enumerate(written):
        assert login(port, text, f"another{n}") == 429, text


@pytest.mark.parametrize("other", [OTHER, "2001:db8:0:1::1", f"{STRANGER}, {OTHER}"])
def test_another_address_is_counted_for_itself(
    port: int, transactional_db: None, redis_flushed: None, other: str
) -> None:
    for one in (STRANGER, "2001:db8::1"):
        statuses = [login(port, one, f"{one}{n}") for n in range(LIMIT + 1)]
        assert statuses == [401] * LIMIT + [429]
    assert login(port, other, "carol") == 401


def test_an_idle_connection_is_kept_as_long_as_the_setting_says(port: int, transactional_db: None) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        begun = time.monotonic()
        while connection.recv(65_536):
            pass
        idle = time.monotonic() - begun
    assert IDLE_SECONDS * 0.9 <= idle < IDLE_SECONDS + 5
