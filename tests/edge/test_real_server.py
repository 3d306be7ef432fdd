"""Bodies on the server we deploy: framed in every way, late, and refused before anybody needs them."""

from __future__ import annotations

import gzip
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from couponsite.auth.tokens import issue_access_token

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a granian worker; it serves refusals, which need no database."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(number)]
    process = subprocess.Popen(
        [*command, "couponsite.wsgi:application"],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any("Started worker" in line for line in process.stdout), "granian did not start"
        wait_for(number)
        yield number
        process.terminate()


def wait_for(port: int) -> None:
    """The worker listens a moment after it says so."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "granian does not listen"


def post(port: int, headers: str, body: bytes, version: str = "1.1", content_type: str = "application/json") -> str:
    head = (
        f"POST /api/v1/coupons/issue-async HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {issue_access_token(1)}\r\nContent-Type: {content_type}\r\n{headers}\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(head.encode() + body)
        with client.makefile("rb") as stream:
            return stream.read().decode()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


WRONG_TYPE = b'{"couponType":5}'


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (f"Content-Length: {len(WRONG_TYPE)}\r\n", WRONG_TYPE),
        ("Transfer-Encoding: chunked\r\n", chunked(WRONG_TYPE)),
        ("Transfer-Encoding: chunked\r\n", chunked(WRONG_TYPE[:5], WRONG_TYPE[5:])),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", chunked(WRONG_TYPE)),
    ],
)
def test_a_body_is_read_however_it_is_framed(port: int, headers: str, body: bytes) -> None:
    answer = post(port, headers, body)
    assert answer.startswith("HTTP/1.1 400 ")
    assert "Expected `str`, got `int`" in answer


@pytest.mark.parametrize(("headers", "body"), [("", b""), ("Transfer-Encoding: chunked\r\n", chunked())])
def test_an_empty_body_is_an_empty_object_however_it_is_framed(port: int, headers: str, body: bytes) -> None:
    assert "couponType: missing" in post(port, headers, body)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Transfer-Encoding: chunked\r\n", chunked(b" " * 16_385)),
        ("Transfer-Encoding: chunked\r\n", chunked(*[b" " * 10_000] * 2)),
        ("Content-Length: 1000000000\r\n", b""),
    ],
)
def test_a_large_body_is_413_however_it_is_framed(port: int, headers: str, body: bytes) -> None:
    answer = post(port, headers, body)
    assert answer.startswith("HTTP/1.1 413 ")
    assert "application/problem+json" in answer


def test_a_broken_chunk_is_400(port: int) -> None:
    assert post(port, "Transfer-Encoding: chunked\r\n", b"zz\r\n").startswith("HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; x*=nonsense''a",
        "application/json; charset*=nonsense''%41",
        "application/json; charset*0*=''%00",
        "application/json; charset=base64",
        "application/json; charset=undefined",
        "application/json; charset=idna",
        "application/json;" * 100,
        "; charset=rot13",
    ],
)
@pytest.mark.parametrize("line", ["GET /api/v1/coupons?limit=1&a=%FF", "GET /admin?a=%FF", "GET /nowhere?a=%FF"])
def test_a_content_type_with_odd_parameters_is_no_error_of_ours(port: int, line: str, content_type: str) -> None:
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(head.encode())
        with client.makefile("rb") as stream:
            answer = stream.read().decode()
    assert answer[9:12] in ("301", "302", "401", "404"), answer


@pytest.mark.parametrize("parameters", ["; charset=utf-8", "; charset=base64", "; x*=nonsense''a"])
def test_json_is_utf_8_whatever_its_parameters_say(port: int, parameters: str) -> None:
    headers = f"Content-Length: {len(WRONG_TYPE)}\r\n"
    assert "Expected `str`, got `int`" in post(port, headers, WRONG_TYPE, content_type=f"application/json{parameters}")


@pytest.mark.parametrize("framing", ["Content-Length: {length}", "Transfer-Encoding: chunked"])
def test_a_compressed_body_is_415_however_it_is_framed(port: int, framing: str) -> None:
    body = gzip.compress(WRONG_TYPE)
    sent = chunked(body) if "chunked" in framing else body
    answer = post(port, f"{framing.format(length=len(body))}\r\nContent-Encoding: gzip\r\n", sent)
    assert answer.startswith("HTTP/1.1 415 ")
    assert post(port, "Transfer-Encoding: gzip, chunked\r\n", chunked(body)).startswith("HTTP/1.1 415 ")


@pytest.mark.parametrize(
    ("status", "line", "headers"),
    [
        (401, "POST /api/v1/coupons/issue-async", "Content-Type: application/json\r\n"),
        (404, "POST /api/v1/nowhere", "Content-Type: application/json\r\n"),
        (405, "PUT /api/v1/coupons/issue-async", "Authorization: {token}\r\nContent-Type: application/json\r\n"),
        (415, "POST /api/v1/coupons/issue-async", "Authorization: {token}\r\nContent-Type: text/plain\r\n"),
        (400, "POST /api/v1/coupons/issue-async", "Authorization: {token}\r\nContent-Type: application/json\r\n"),
    ],
)
@pytest.mark.parametrize(
    ("framing", "body"),
    [(f"Content-Length: {len(WRONG_TYPE)}\r\n", WRONG_TYPE), ("Transfer-Encoding: chunked\r\n", chunked(WRONG_TYPE))],
)
def test_a_refusal_keeps_the_connection_though_the_body_comes_after_the_head(
    port: int, status: int, line: str, headers: str, framing: str, body: bytes
) -> None:
    token = f"Bearer {issue_access_token(1)}"
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\n{headers.format(token=token)}{framing}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(head.encode())
        # An answer that does not wait for the body comes now, and the end of the connection with it.
        assert not select.select([client], [], [], 0.2)[0]
        client.sendall(body + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as stream:
            answers = stream.read().decode()
    assert answers.startswith(f"HTTP/1.1 {status} ")
    assert answers.count("HTTP/1.1 ") == 2
    assert answers.endswith('{"status": "ok"}')
